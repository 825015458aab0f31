package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs/portsentrylog"
	"github.com/portsnare/portsnare/parsers/cmdline"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// compatibleVersion is the release of PortSentry 2 whose place we take. Scripts
// read it from the first line; what stands behind it in parentheses is free.
const compatibleVersion = "2.0.7"

// A portSentry2 is the daemon in the place of PortSentry 2.
type portSentry2 struct {
	*voice
	line       cmdline.PortSentry2
	background bool
	dir        string // in the background: the directory that was left, where relative names lead
	loaded     bool   // the configuration has been read once
	stderr     io.Writer
}

// runPortSentry2 is PortSentry 2 with the given arguments.
func runPortSentry2(args []string, stdout, stderr io.Writer) int {
	background := isBackground()
	fmt.Fprintf(stdout, "Portsentry %s (portsnare %s)\n", compatibleVersion, version.String())
	line, err := cmdline.ParsePortSentry2(portSentry, args)
	if refused, ok := errors.AsType[*cmdline.Error](err); ok {
		for _, text := range []struct {
			to   io.Writer
			text string
		}{{stderr, refused.Stderr}, {stdout, refused.Stdout}} {
			if text.text != "" {
				fmt.Fprintln(text.to, text.text)
			}
		}
		return exitFault
	}
	switch {
	case line.Help:
		fmt.Fprint(stdout, cmdline.Usage(portSentry))
		return exitOK
	case line.Version:
		return exitOK
	}
	p := &portSentry2{line: line, background: background, stderr: stderr, voice: newVoice2(line, stdout, stderr)}
	code := p.run()
	p.say(logline.Normal, "Portsentry is shutting down")
	p.close()
	return code
}

// newVoice2 returns what says the lines that line asks for.
func newVoice2(line cmdline.PortSentry2, stdout, stderr io.Writer) *voice {
	v := &voice{verbose: line.Verbose, debug: line.Debug}
	if line.Stdout {
		v.out, v.fault = newPrinter(stdout), newPrinter(stderr)
	}
	if line.Syslog {
		v.syslog = portsentrylog.NewSyslog(portsentrylog.SyslogOptions{Tag: portSentry})
	}
	return v
}

// run returns the exit status. What is wrong with the configuration goes to
// standard error, wherever lines go.
func (p *portSentry2) run() int {
	if !isRoot() {
		fmt.Fprintln(p.stderr, rootNeeded)
		return exitFault
	}
	if p.background {
		var err error
		if p.dir, err = leaveDirectory(); err != nil {
			p.sayError(err)
			return exitFault
		}
		p.line.ConfigFile = absolute(p.dir, p.line.ConfigFile)
	}
	cfg, err := p.load()
	if err != nil {
		if text := upstream(err); text != "" {
			fmt.Fprintln(p.stderr, text)
		}
		explainTo(p.stderr, err)
		return exitFault
	}
	if p.line.Daemon && !p.background {
		return p.leave()
	}
	if err := p.persona().watch(cfg); err != nil {
		p.sayError(err)
		if ignore, ok := errors.AsType[*ignoreError](err); ok {
			p.say(logline.Error, "Error initializing ignore file %s", ignore.path)
			p.say(logline.Error, "Could not initialize sentry. Shutting down.")
		}
		return exitFault
	}
	return exitOK
}

// leave leaves the work to a process in the background. The lines about its end
// are that one's, so this one says nothing more.
func (p *portSentry2) leave() int {
	if err := goToBackground(); err != nil {
		explainTo(p.stderr, err)
		return exitFault
	}
	p.out, p.fault, p.syslog = nil, nil, nil
	return exitOK
}

func (p *portSentry2) persona() persona {
	return persona{
		log: p.logger(), out: p.out, fault: p.fault,
		warn:         p.warn,
		load:         p.load,
		loadIgnore:   p.loadIgnore,
		form:         p.form,
		mode:         mode2,
		active:       p.active,
		refused:      p.refused,
		tellServices: true,
	}
}

// load reads the configuration, and adds what PortSentry 2 takes from its
// command line.
func (p *portSentry2) load() (conf.Config, error) {
	first := !p.loaded
	cfg, warnings, err := conf.LoadPortSentry2(p.line.ConfigFile, p.line.Mode)
	if first {
		for _, w := range warnings {
			fmt.Fprintf(p.stderr, "%s: warning: %v\n", portSentry, w)
		}
	} else {
		p.warn(warnings...)
	}
	if err != nil {
		return cfg, err
	}
	p.loaded = true
	cfg.Interfaces = p.line.Interfaces
	cfg.Detect.SkipLocalCheck = p.line.SkipLocalCheck
	cfg.Detect.SkipServiceCheck = p.line.SkipServiceCheck
	cfg.Log.NoStdout, cfg.Log.Syslog, cfg.Log.SyslogTag = !p.line.Stdout, p.line.Syslog, portSentry
	if p.background {
		nameFilesFrom(p.dir, &cfg)
	}
	return cfg, nil
}

// An ignoreError is what is wrong with the ignore file.
type ignoreError struct {
	path string
	err  error
}

func (e *ignoreError) Error() string { return e.err.Error() }
func (e *ignoreError) Unwrap() error { return e.err }

func (p *portSentry2) loadIgnore(paths ...string) (detector.PrefixSet, []conf.Warning, error) {
	set, warnings, err := conf.LoadIgnore(paths...)
	if err != nil {
		return set, warnings, &ignoreError{path: paths[0], err: err}
	}
	return set, warnings, nil
}

func (p *portSentry2) form(cfg conf.Config) portsentrylog.Form {
	form := logline.PortSentry2{Verbose: p.verbose, Debug: p.debug}
	if len(cfg.Detect.Ignore) > 0 {
		form.IgnoreFile = cfg.Detect.Ignore[0]
	}
	return form.AppendLines
}

// active says what is watched and then, what scripts wait for, that it is.
func (p *portSentry2) active(d *daemon) {
	for _, prefix := range d.ignored.Prefixes() {
		p.say(logline.Verbose, "Ignoring IP: %v/%v", prefix.Addr(), netmask(prefix))
	}
	if d.traps != nil {
		tcp, udp := d.traps.Ports()
		p.listening(detector.TCP, tcp)
		p.listening(detector.UDP, udp)
	}
	if d.socket != nil && p.line.Method == cmdline.Pcap {
		p.devices(d.socket)
	}
	p.say(logline.Normal, "Portsentry is now active and listening.")
}

func (p *portSentry2) listening(proto detector.Proto, ports detector.PortSet) {
	for _, r := range ports.Ranges() {
		for port := int(r.First); port <= int(r.Last); port++ {
			p.say(logline.Normal, "Listen on AF_INET6: %v port: %d", proto, port)
		}
	}
}

func (p *portSentry2) refused(ports []capture.RefusedPort) {
	for _, r := range ports {
		p.say(logline.Verbose, "Binding AF_INET6 %v %d failed: %s", r.Proto, r.Port, reason(r.Err))
		p.say(logline.Error, "Could not bind %v socket on port %d. Attempting to continue", r.Proto, r.Port)
	}
}

func (p *portSentry2) devices(socket *capture.PacketSocket) {
	for _, name := range socket.Unusable() {
		p.say(logline.Error, "StartDevice: Device %s has no addresses, skipping", name)
	}
	for _, device := range socket.Devices() {
		if len(device.Addrs) == 0 {
			continue
		}
		p.say(logline.Verbose, "Ready Device: %s ...", device.Name)
		for _, addr := range device.Addrs {
			family := "inet6"
			if addr.Is4() {
				family = "inet4"
			}
			p.say(logline.Verbose, "  %s addr: %v", family, addr)
		}
	}
}

// netmask returns the bits of a prefix as an address of its family.
func netmask(p netip.Prefix) netip.Addr {
	mask, _ := netip.AddrFromSlice(net.CIDRMask(p.Bits(), p.Addr().BitLen()))
	return mask
}

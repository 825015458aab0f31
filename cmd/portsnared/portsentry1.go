package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture"
	"github.com/portsnare/portsnare/internal/blockfile"
	"github.com/portsnare/portsnare/outputs/portsentrylog"
	"github.com/portsnare/portsnare/outputs/runcmd"
	"github.com/portsnare/portsnare/parsers/cmdline"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// exitPortSentry1 is the status with which PortSentry 1.2 ends when it cannot go on.
const exitPortSentry1 = 255

// A portSentry1 is the daemon in the place of PortSentry 1.2.
type portSentry1 struct {
	*voice
	word           conf.ModeWord
	stdout, stderr io.Writer

	config  conf.PortSentry1
	taken   detector.PortSet // of these, others have now
	refused detector.PortSet // of these, others have, so that they could not be opened
	ignores int              // how often the ignore file was read
}

// runPortSentry1 is PortSentry 1.2 with a word as its only argument.
func runPortSentry1(word conf.ModeWord, stdout, stderr io.Writer) int {
	background := isBackground()
	if !isRoot() {
		fmt.Fprintln(stdout, rootNeeded)
		return exitPortSentry1
	}
	p := &portSentry1{word: word, stdout: stdout, stderr: stderr, voice: &voice{
		prefix: "adminalert: ", flat: true,
		syslog: portsentrylog.NewSyslog(portsentrylog.SyslogOptions{Tag: portSentry}),
	}}
	defer p.close()
	if background {
		return p.runDaemon()
	}
	p.admin("PortSentry 1.2 is starting.")
	if !p.load(true) {
		return p.end(exitPortSentry1)
	}
	if err := goToBackground(); err != nil {
		explainTo(stderr, err)
		return p.end(exitPortSentry1)
	}
	return exitOK
}

// admin says a line about the program. All lines of PortSentry 1.2 have the same
// severity.
func (p *portSentry1) admin(format string, args ...any) {
	p.say(logline.Normal, "adminalert: "+format, args...)
}

// end says the last two lines.
func (p *portSentry1) end(code int) int {
	p.say(logline.Normal, "securityalert: PortSentry is shutting down")
	p.admin("PortSentry is shutting down")
	return code
}

// load reads the configuration, and says what is wrong with it. While somebody is
// watching, the file of blocked sources is emptied, too: what is wrong with that
// is told at once.
func (p *portSentry1) load(watched bool) bool {
	config, warnings, err := conf.LoadPortSentry1(cmdline.DefaultConfigFile, p.word)
	for _, w := range warnings {
		if watched && w.Upstream != "" {
			p.say(logline.Normal, "%s", w.Upstream)
		}
		if watched {
			fmt.Fprintf(p.stderr, "%s: warning: %v\n", portSentry, w)
		}
	}
	if err == nil && watched {
		err = emptyBlocked(config.Ban)
	}
	if err == nil {
		p.config = config
		return true
	}
	if watched {
		explainTo(p.stderr, err)
	}
	p.refuse(err, watched)
	return false
}

// emptyBlocked does with the file of blocked sources what every start does.
func emptyBlocked(ban conf.Ban) error {
	blocked, err := blockfile.Open(ban.File, ban.FileFormat, nil)
	if err != nil {
		return err
	}
	return blocked.Close()
}

// refuse says in PortSentry's words that it does not start: to syslog, and to who
// is watching that they should look there. What it has no words for is told in
// ours.
func (p *portSentry1) refuse(err error, watched bool) {
	first, _, _ := strings.Cut(err.Error(), "\n")
	p.say(logline.Normal, "%s", cmp.Or(upstream(err), p.prefix+first))
	faults, _ := errors.AsType[conf.Faults](err)
	if len(faults) > 0 && faults.OnlyPorts() {
		p.admin("ERROR: could not go into PortSentry mode. Shutting down.")
		return // PortSentry is in the background by now
	}
	text := "ERROR: Your config file is corrupted/missing mandatory option!"
	if faults.Unreadable() {
		text = "ERROR: Configuration files are missing/corrupted."
	}
	p.admin("%s Shutting down.", text)
	if watched {
		fmt.Fprintln(p.stdout, text)
		fmt.Fprintln(p.stdout, "ERROR: Check your syslog for a more detailed error message.")
		fmt.Fprintln(p.stdout, "ERROR: PortSentry is shutting down!")
	}
}

// runDaemon is the process in the background.
func (p *portSentry1) runDaemon() int {
	syscall.Umask(0o077)
	if !p.load(false) {
		return p.end(exitPortSentry1)
	}
	cfg := p.config.Config
	dir, err := leaveDirectory()
	if err != nil {
		p.sayError(err)
		return p.end(exitPortSentry1)
	}
	nameFilesFrom(dir, &cfg)
	if !p.word.Opens() && !p.leaveOutTaken(&cfg) {
		return p.end(exitPortSentry1)
	}
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(interrupted, stop) // so that a second one ends it at once
	err = p.persona().watch(cfg)
	switch {
	case interrupted.Err() != nil: // with that it goes without a word
		return exitOK
	case err != nil:
		p.sayError(err)
		if _, ok := errors.AsType[*capture.NoTrapsError](err); ok {
			p.listen()
			p.admin("ERROR: could not bind ANY %v sockets. Shutting down.", p.word.Proto())
		}
		p.admin("ERROR: could not go into PortSentry mode. Shutting down.")
		return p.end(exitPortSentry1)
	}
	return p.end(exitOK)
}

// leaveOutTaken has cfg watch no port that is in use now, and reports whether any
// is left.
func (p *portSentry1) leaveOutTaken(cfg *conf.Config) bool {
	services, err := capture.NewServices(p.logger())
	if err != nil {
		p.sayError(err)
		return false
	}
	ports := &cfg.Detect.TCPPorts
	if p.word.Proto() == detector.UDP {
		ports = &cfg.Detect.UDPPorts
	}
	var taken, left []detector.PortRange
	for _, r := range ports.Ranges() {
		for port := int(r.First); port <= int(r.Last); port++ {
			one := detector.PortRange{First: uint16(port), Last: uint16(port)}
			if services.PortInUse(p.word.Proto(), one.First) {
				taken = append(taken, one)
			} else {
				left = append(left, one)
			}
		}
	}
	p.taken, *ports = detector.NewPortSet(taken...), detector.NewPortSet(left...)
	if err := services.Close(); err != nil {
		p.sayError(err)
	}
	if ports.Len() == 0 {
		p.admin("ERROR: All supplied %v sockets are in use and will not be listened to. Shutting down.", p.word.Proto())
		p.admin("ERROR: could not go into PortSentry mode. Shutting down.")
	}
	return ports.Len() > 0
}

func (p *portSentry1) persona() persona {
	return persona{
		log:        p.logger(),
		warn:       p.warn,
		load:       func() (conf.Config, error) { return p.config.Config, nil },
		loadIgnore: p.loadIgnore,
		form: func(conf.Config) portsentrylog.Form {
			return logline.PortSentry1{Advanced: p.word.Advanced()}.AppendLines
		},
		active:        p.active,
		refused:       p.noteRefused,
		mode:          p.mode,
		makeHostsDeny: true,
		ignoreHangup:  true,
	}
}

// mode returns the word for $MODE$, which is the one that the program was started
// with.
func (p *portSentry1) mode(*detector.Probe) runcmd.Mode {
	mode, _ := runcmd.ParseMode(string(p.word)) // it knows all six
	return mode
}

// loadIgnore reads the ignore file. Without one PortSentry 1.2 ignores nobody. We
// start without, too; but if it goes later, what it said stays in force, because
// editors remove a file for a moment when they write it.
func (p *portSentry1) loadIgnore(paths ...string) (detector.PrefixSet, []conf.Warning, error) {
	set, warnings, err := conf.LoadPortSentry1Ignore(paths...)
	p.ignores++
	if err != nil && p.ignores == 1 {
		p.sayError(err)
		err = nil
	}
	return set, warnings, err
}

// active says what is watched, port by port, and then that it is.
func (p *portSentry1) active(d *daemon) {
	switch {
	case d.traps != nil:
		p.listen()
	case p.word.Advanced():
		p.advanced()
	default:
		p.sniff()
	}
	p.admin("PortSentry is now active and listening.")
}

// noteRefused keeps the ports that could not be opened, to name each in its turn.
func (p *portSentry1) noteRefused(ports []capture.RefusedPort) {
	var refused []detector.PortRange
	for _, r := range ports {
		refused = append(refused, detector.PortRange{First: r.Port, Last: r.Port})
	}
	p.refused = detector.NewPortSet(refused...)
}

// listen says which ports are opened, and which could not be.
func (p *portSentry1) listen() {
	for _, port := range p.config.Listed {
		p.admin("Going into listen mode on %v port: %d", p.word.Proto(), port)
		if p.refused.Contains(port) {
			p.admin("ERROR: could not bind %v socket: %d. Attempting to continue", p.word.Proto(), port)
		}
	}
}

func (p *portSentry1) sniff() {
	for _, port := range p.config.Listed {
		p.admin("Going into stealth listen mode on %v port: %d", p.word.Proto(), port)
		if p.taken.Contains(port) {
			p.admin("ERROR: Socket %d is in use and will not be monitored. Attempting to continue", port)
		}
	}
}

func (p *portSentry1) advanced() {
	low := p.config.LowPorts[0]
	p.admin("Advanced mode will monitor first %d ports", low.Limit)
	if len(low.Excluded) == 0 {
		p.admin("Advanced mode will manually exclude no ports")
	}
	for _, port := range low.Excluded {
		p.admin("Advanced mode will manually exclude port: %d ", port)
	}
	ignored := func(port uint16) {
		p.admin("Advanced Stealth scan detection mode activated. Ignored %v port: %d", p.word.Proto(), port)
	}
	for _, r := range p.taken.Ranges() {
		for port := int(r.First); port <= int(r.Last); port++ {
			ignored(uint16(port))
		}
	}
	for _, port := range low.Excluded {
		ignored(port)
	}
}

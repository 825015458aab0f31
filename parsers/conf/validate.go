package conf

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// validate records what the types of the dialects cannot rule out.
func (c *Config) validate(d *diagnosis) {
	c.validateMode(d)
	c.validateInterfaces(d)
	c.validateBan(d)
	for i, path := range c.Detect.Ignore {
		validatePath(d, "detect.ignore", path)
		if path == "" {
			d.fault(d.at("detect.ignore"), "file %d has no name", i+1)
		}
	}
	c.validateFiles(d)
	c.validateOwnPaths(d)
	if !isSyslogTag(c.Log.SyslogTag) {
		d.fault(d.at("log.syslog_tag"), "%q is no syslog tag; use up to %d letters, digits, and any of . _ - /", c.Log.SyslogTag, maxSyslogTag)
	}
	if !slices.Contains(lineFormats, c.Log.Format) {
		d.fault(d.at("log.format"), `%q is no form of lines; use "portsentry2" or "portsentry1"`, c.Log.Format)
	}
	if !slices.Contains(historyFormats, c.Log.HistoryFormat) {
		d.fault(d.at("log.history_format"), `%q is no form of history; use "portsentry2" or "portsentry1"`, c.Log.HistoryFormat)
	}
	if strings.ContainsRune(c.Trap.Banner, 0) {
		d.fault(d.at("trap.banner"), "holds a zero byte")
	}
	if n := len(c.Trap.Banner); n > maxBanner {
		d.fault(d.at("trap.banner"), "has %d bytes; %d are the most", n, maxBanner)
	}
	c.validateOutputs(d)
	// A faulty list of ports leaves its set empty: that is no second fault.
	if len(d.faults) == 0 && c.lacksPorts() {
		d.fault(d.at("detect"), `no trap ports; set tcp_ports or udp_ports ("portsnare config default" prints lists to start from)`)
	}
}

var lineFormats = []LineFormat{LinesPortSentry2, LinesPortSentry1}

var historyFormats = []HistoryFormat{HistoryPortSentry2, HistoryPortSentry1}

// maxSocketPath is how long the name of a socket may be (sun_path in unix(7),
// which ends in a zero byte).
const maxSocketPath = 107

// validateOwnPaths checks the paths that must not depend on where the daemon is
// started.
func (c *Config) validateOwnPaths(d *diagnosis) {
	wantAbsolute(d, "state", c.State)
	if c.Control != NoControl {
		wantAbsolute(d, "control", c.Control)
	}
	if n := len(c.Control); n > maxSocketPath {
		d.fault(d.at("control"), "has %d bytes; %d are the most in the name of a socket", n, maxSocketPath)
	}
	for _, dir := range c.OutputDirs {
		wantAbsolute(d, "output_dirs", dir)
		validatePath(d, "output_dirs", dir)
	}
}

func wantAbsolute(d *diagnosis, key, path string) {
	if !filepath.IsAbs(path) {
		d.fault(d.at(key), "%q is no absolute path; start it with /", path)
	}
}

// lacksPorts reports whether there is nothing to watch in one of the ways that
// the mode asks for. In mode Both the traps can do without ports of their own.
func (c *Config) lacksPorts() bool {
	tcp, udp := c.Sniffed()
	if c.Mode == Trap {
		tcp, udp = c.Opened()
	}
	return tcp.Len() == 0 && udp.Len() == 0
}

// validateFiles makes sure that each thing has a file of its own.
func (c *Config) validateFiles(d *diagnosis) {
	const json = "events.json"
	control := c.Control
	if control == NoControl {
		control = ""
	}
	writers := []struct{ key, path string }{
		{"state", c.State}, {"control", control}, {"log.history", c.Log.History}, {json, c.Events.JSON}, {"ban.file", c.Ban.File},
	}
	for i, w := range writers {
		validatePath(d, w.key, w.path)
		for _, other := range writers[:i] {
			if w.path != "" && other.path != "" && filepath.Clean(w.path) == filepath.Clean(other.path) {
				d.fault(d.at(w.key), "this is the file of %s; two writers would tear each other's records, so name another", cmp.Or(d.at(other.key).Key, other.key))
				break
			}
		}
	}
	if c.Events.JSON == "-" && !c.Log.NoStdout {
		d.fault(d.at(json), "PortSentry's lines go to standard output already; set log.stdout = false or name a file")
	}
}

func (c *Config) validateMode(d *diagnosis) {
	switch c.Mode {
	case Stealth, Trap, Both:
	default:
		d.fault(d.at("mode"), `%q is no mode; use "stealth", "trap" or "both"`, c.Mode)
	}
}

func (c *Config) validateInterfaces(d *diagnosis) {
	for _, err := range interfaceFaults(c.Interfaces) {
		d.fault(d.at("interfaces"), "%v", err)
	}
}

// CheckInterfaces tells what is wrong with a list of interfaces from a command
// line, as [Load] does with one from a file. Whether they exist is not asked.
func CheckInterfaces(names []string) error {
	return errors.Join(interfaceFaults(names)...)
}

func interfaceFaults(names []string) []error {
	var faults []error
	for _, name := range names {
		switch {
		case name == AllInterfaces || name == AllButLoopback:
			if len(names) > 1 {
				faults = append(faults, fmt.Errorf("%q stands for itself; take the other names out", name))
			}
		case !isInterfaceName(name):
			faults = append(faults, fmt.Errorf("%q is no interface name", name))
		}
	}
	return faults
}

// validatePath refuses the names that no file can have and those that would
// break the lines in which we print them.
func validatePath(d *diagnosis, key, path string) {
	if strings.ContainsFunc(path, unicode.IsControl) {
		d.fault(d.at(key), "%q holds a control character", path)
	}
}

// isInterfaceName follows what Linux allows (dev_valid_name in net/core/dev.c),
// and refuses control characters too.
func isInterfaceName(name string) bool {
	bad := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r) }
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsFunc(name, bad)
}

// maxBanner is what a new connection takes without waiting for its peer.
const maxBanner = 4096

// maxSyslogTag is the longest tag of RFC 3164, section 4.1.3.
const maxSyslogTag = 32

// isSyslogTag leaves out every character at which a reader may end the tag.
func isSyslogTag(tag string) bool {
	return tag != "" && len(tag) <= maxSyslogTag && strings.Trim(tag, bareKey+"./") == ""
}

// warn records what is in order, but may surprise.
func (c *Config) warn(d *diagnosis) {
	c.warnOfOtherModes(d)
	c.warnOfNever(d)
	c.warnOfTargets(d)
	c.warnOfDeafModules(d)
	slices.SortStableFunc(d.warnings, func(a, b Warning) int { return cmp.Compare(a.Line, b.Line) })
}

// warnOfOtherModes says which settings the mode leaves without effect.
func (c *Config) warnOfOtherModes(d *diagnosis) {
	warn := func(without bool, key, why string) {
		if without {
			d.warn(d.at(key), "%s", why)
		}
	}
	const unopened = "stealth mode opens no ports; list these in [detect], or choose another mode"
	stealth := c.Mode == Stealth
	warn(stealth && c.Trap.TCPPorts.Len() > 0, "trap.tcp_ports", unopened)
	warn(stealth && c.Trap.UDPPorts.Len() > 0, "trap.udp_ports", unopened)
	banner := c.Trap.Banner != "" && d.at("trap.banner").Key != "PORT_BANNER" // one file serves all of PortSentry's modes
	warn(stealth && banner, "trap.banner", "stealth mode opens no ports and sends no banner; the setting is kept")

	const unwatched = "trap mode watches the ports of [trap] only"
	apart := c.Mode == Trap && c.Trap.TCPPorts.Len()+c.Trap.UDPPorts.Len() > 0
	warn(apart && c.Detect.TCPPorts.Len() > 0, "detect.tcp_ports", unwatched)
	warn(apart && c.Detect.UDPPorts.Len() > 0, "detect.udp_ports", unwatched)
}

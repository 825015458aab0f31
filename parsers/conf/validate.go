package conf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
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
	for _, name := range slices.Sorted(maps.Keys(c.Outputs)) {
		if !isOutputName(name) {
			d.fault(d.at("output."+bareOrQuoted(name)), "%q is no output name; use up to %d lower-case letters, digits, - and _", name, maxOutputName)
		}
		validateSettings(d, name, c.Outputs[name])
	}
	// A faulty list of ports leaves its set empty: that is no second fault.
	if len(d.faults) == 0 && c.lacksPorts() {
		d.fault(d.at("detect"), `no trap ports; set tcp_ports or udp_ports ("portsnare config default" prints lists to start from)`)
	}
}

var lineFormats = []LineFormat{LinesPortSentry2, LinesPortSentry1}

var banFileFormats = []BanFileFormat{BanFilePortSentry2, BanFilePortSentry1}

var historyFormats = []HistoryFormat{HistoryPortSentry2, HistoryPortSentry1}

// lacksPorts reports whether there is nothing to watch in one of the ways that
// the mode asks for. In mode Both the traps can do without ports of their own.
func (c *Config) lacksPorts() bool {
	tcp, udp := c.Sniffed()
	if c.Mode == Trap {
		tcp, udp = c.Opened()
	}
	return tcp.Len() == 0 && udp.Len() == 0
}

// validateFiles makes sure that no two outputs write to the same place.
func (c *Config) validateFiles(d *diagnosis) {
	const json, history, banned = "events.json", "log.history", "ban.file"
	writers := []struct{ key, path string }{{history, c.Log.History}, {json, c.Events.JSON}, {banned, c.Ban.File}}
	for i, w := range writers {
		validatePath(d, w.key, w.path)
		for _, other := range writers[:i] {
			if w.path != "" && filepath.Clean(w.path) == filepath.Clean(other.path) {
				d.fault(d.at(w.key), "this is the file of %s; two writers would tear each other's records, so name another", other.key)
				break
			}
		}
	}
	if c.Events.JSON == "-" && !c.Log.NoStdout {
		d.fault(d.at(json), "PortSentry's lines go to standard output already; set log.stdout = false or name a file")
	}
}

// outputSettings are the settings of the outputs that this release has: for each
// the kind of value that it takes.
var outputSettings = map[string]map[string]any{
	"runcmd":    {"route": "", "command": "", "command_first": false, "ignore_status": false},
	"hostsdeny": {"line": "", "file": ""},
}

// validateSettings checks the settings of an output, if it is one we know.
func validateSettings(d *diagnosis, name string, o Output) {
	kinds, known := outputSettings[name]
	if !known {
		return
	}
	for _, setting := range slices.Sorted(maps.Keys(o.Settings)) {
		place := d.at("output." + name + ".settings." + bareOrQuoted(setting))
		kind, known := kinds[setting]
		switch value := o.Settings[setting]; {
		case !known:
			d.fault(place, "unknown setting; %s has %s", name, strings.Join(slices.Sorted(maps.Keys(kinds)), ", "))
		case tomlType(value) != tomlType(kind):
			d.add(place, wrongType(tomlType(kind), value)[0])
		case strings.ContainsFunc(o.Text(setting), breaksLine):
			d.fault(place, "holds a control character; it is one line")
		}
	}
}

// breaksLine reports whether r would break the line that tells of a command, or
// a line of hosts.deny.
func breaksLine(r rune) bool { return r != '\t' && unicode.IsControl(r) }

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

func (c *Config) validateBan(d *diagnosis) {
	switch c.Ban.Evidence {
	case EvidenceOff:
	case EvidenceClassic:
		if !c.bans() {
			d.fault(d.at("ban.evidence"), `"classic" needs tcp or udp; set one to "ban" or "command"`)
		}
	case "pattern", "proven":
		d.fault(d.at("ban.evidence"), `%q comes with a later release; use "off" or "classic"`, c.Ban.Evidence)
	default:
		d.fault(d.at("ban.evidence"), `%q is no kind of evidence; use "off" or "classic"`, c.Ban.Evidence)
	}
	validateReaction(d, "ban.tcp", c.Ban.TCP)
	validateReaction(d, "ban.udp", c.Ban.UDP)
	if !slices.Contains(banFileFormats, c.Ban.FileFormat) {
		d.fault(d.at("ban.file_format"), `%q is no form of the file; use "portsentry2" or "portsentry1"`, c.Ban.FileFormat)
	}
}

func validateReaction(d *diagnosis, key string, r Reaction) {
	if !slices.Contains(reactions, r) {
		d.fault(d.at(key), `%q is no reaction; use "off", "ban" or "command"`, r)
	}
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

const maxOutputName = 64

// isOutputName allows what is safe as the file name of a module.
func isOutputName(name string) bool {
	return name != "" && len(name) <= maxOutputName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// warn records what is in order, but may surprise.
func (c *Config) warn(d *diagnosis) {
	c.warnOfOtherModes(d)
	c.warnOfOtherOutputs(d)
	c.warnOfTargets(d)
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
	warn(stealth && c.Trap.Banner != "", "trap.banner", "stealth mode opens no ports and sends no banner; the setting is kept")

	const unwatched = "trap mode watches the ports of [trap] only"
	apart := c.Mode == Trap && c.Trap.TCPPorts.Len()+c.Trap.UDPPorts.Len() > 0
	warn(apart && c.Detect.TCPPorts.Len() > 0, "detect.tcp_ports", unwatched)
	warn(apart && c.Detect.UDPPorts.Len() > 0, "detect.udp_ports", unwatched)
}

// warnOfOtherOutputs says which outputs are not there yet: whoever configures
// one must not believe that it acts.
func (c *Config) warnOfOtherOutputs(d *diagnosis) {
	for _, name := range slices.Sorted(maps.Keys(c.Outputs)) {
		if _, known := outputSettings[name]; !known {
			d.warn(d.at("output."+name), "this release has the outputs hostsdeny and runcmd only and starts no other; the setting is kept")
		}
	}
}

// warnOfTargets says which settings lack the source that they are to ban.
// PortSentry skips them too.
func (c *Config) warnOfTargets(d *diagnosis) {
	warn := func(output, setting string) {
		if text := c.Outputs[output].Text(setting); text != "" && !strings.Contains(text, "$TARGET$") {
			d.warn(d.at("output."+output+".settings."+setting), "never carried out, because it does not say $TARGET$, which stands for the source")
		}
	}
	warn("runcmd", "route")
	warn("hostsdeny", "line")
}

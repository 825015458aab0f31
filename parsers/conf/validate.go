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

	"github.com/portsnare/portsnare/detector"
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
	validatePath(d, "ban.file", c.Ban.File)
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
	}
	// A faulty list of ports leaves its set empty: that is no second fault.
	if len(d.faults) == 0 && c.lacksPorts() {
		d.fault(d.at("detect"), `no trap ports; set tcp_ports or udp_ports ("portsnare config default" prints lists to start from)`)
	}
}

var lineFormats = []LineFormat{LinesPortSentry2, LinesPortSentry1}

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
	history, events := c.Log.History, c.Events.JSON
	validatePath(d, "log.history", history)
	validatePath(d, "events.json", events)
	switch {
	case events == "":
	case events == "-":
		if !c.Log.NoStdout {
			d.fault(d.at("events.json"), "PortSentry's lines go to standard output already; set log.stdout = false or name a file")
		}
	case history != "" && filepath.Clean(events) == filepath.Clean(history):
		d.fault(d.at("events.json"), "this is the file of log.history; two writers would tear each other's records, so name another")
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
	c.warnOfLateAnswers(d)
	c.warnOfOtherModes(d)
	c.warnOfLaterReleases(d)
	slices.SortStableFunc(d.warnings, func(a, b Warning) int { return cmp.Compare(a.Line, b.Line) })
}

// ephemeral is where Linux puts sockets that did not ask for a port, by the
// default of net.ipv4.ip_local_port_range, over IPv6 too.
var ephemeral = detector.PortRange{First: 32768, Last: 60999}

// maxReserved is how many of the ephemeral ports a host can do without.
const maxReserved = 1000

// warnOfLateAnswers says which UDP trap ports may get an answer for a socket
// that has been closed in the meantime: it looks like a probe. TCP has no such
// case, because every answer carries ACK or RST.
func (c *Config) warnOfLateAnswers(d *diagnosis) {
	_, sniffed := c.Sniffed() // the kernel gives an opened port to no other socket
	var ranges []detector.PortRange
	for _, r := range sniffed.Ranges() {
		ranges = append(ranges, detector.PortRange{First: max(r.First, ephemeral.First), Last: min(r.Last, ephemeral.Last)})
	}
	ports := detector.NewPortSet(ranges...)
	if ports.Len() == 0 {
		return
	}
	remedy := "leave these ports out"
	if ports.Len() <= maxReserved {
		remedy = fmt.Sprintf("reserve these ports with sysctl net.ipv4.ip_local_reserved_ports=%s, or leave them out", ports)
	}
	d.warn(d.at("detect.udp_ports"), "late answers to this host's own UDP requests, such as DNS and NTP, "+
		"usually arrive at ports %d-%d and would be reported as probes by the server; %s", ephemeral.First, ephemeral.Last, remedy)
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

// warnOfLaterReleases says which settings have no effect yet: whoever asks for
// a ban must not believe that there will be one.
func (c *Config) warnOfLaterReleases(d *diagnosis) {
	const kept = "; the setting is kept"
	if c.Ban.Evidence == EvidenceClassic {
		const text = "this release reports and bans nobody" + kept
		if c.Ban.TCP != ReactOff {
			d.warn(d.at("ban.tcp"), text)
		}
		if c.Ban.UDP != ReactOff {
			d.warn(d.at("ban.udp"), text)
		}
	}
	if c.Ban.File != "" {
		d.warn(d.at("ban.file"), "this release bans nobody and leaves the file alone"+kept)
	}
	if c.Log.Resolve {
		d.warn(d.at("log.resolve"), "this release looks up no names; lines carry the address"+kept)
	}
	for _, place := range c.outputPlaces(d) {
		d.warn(place, "this release starts no outputs and bans nobody"+kept)
	}
}

// outputPlaces returns the places of the [output.NAME] blocks or, in a dialect
// that has none, of the keys that became their settings.
func (c *Config) outputPlaces(d *diagnosis) []Place {
	var places []Place
	for name, output := range c.Outputs {
		key := "output." + name
		if block, ok := d.places[key]; ok {
			places = append(places, block)
			continue
		}
		for setting := range output.Settings {
			places = append(places, d.at(key+".settings."+setting))
		}
	}
	slices.SortFunc(places, func(a, b Place) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
	return places
}

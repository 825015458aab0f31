package conf

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/portsnare/portsnare/detector"
)

// This file reads the configuration of PortSentry 2.0.7: lines of KEY="value".
// The command line chooses mode and interfaces there; what it chooses by
// default is set here, so that a converted file means the same.

// maxPortSentryLine is how much of a line PortSentry 2 reads. A value has to
// end within it; what follows the value is ignored anyway.
const maxPortSentryLine = 1023

// A portSentryKey says which native key a key stands for and how its value
// gets into the Config.
type portSentryKey struct {
	native string
	set    func(c *Config, value string) Faults
}

var portSentryKeys = map[string]portSentryKey{
	"TCP_PORTS": {"detect.tcp_ports", func(c *Config, v string) (faults Faults) {
		c.Detect.TCPPorts, faults = parsePorts(v)
		return faults
	}},
	"UDP_PORTS": {"detect.udp_ports", func(c *Config, v string) (faults Faults) {
		c.Detect.UDPPorts, faults = parsePorts(v)
		return faults
	}},
	"IGNORE_FILE": {"detect.ignore", func(c *Config, v string) Faults {
		c.Detect.Ignore = []string{v}
		return nil
	}},
	"SCAN_TRIGGER": {"detect.trigger", func(c *Config, v string) (faults Faults) {
		c.Detect.Trigger, faults = digits(v)
		return faults
	}},
	"BLOCK_TCP": {"ban.tcp", func(c *Config, v string) Faults { return oneOf(&c.Ban.TCP, v, reactions) }},
	"BLOCK_UDP": {"ban.udp", func(c *Config, v string) Faults { return oneOf(&c.Ban.UDP, v, reactions) }},
	"BLOCKED_FILE": {"ban.file", func(c *Config, v string) Faults {
		c.Ban.File = v
		return nil
	}},
	"PORT_BANNER": {"trap.banner", func(c *Config, v string) Faults {
		c.Trap.Banner = v
		return nil
	}},
	"HISTORY_FILE": {"log.history", func(c *Config, v string) Faults {
		c.Log.History = v
		return nil
	}},
	"RESOLVE_HOST":       {"log.resolve", func(c *Config, v string) Faults { return oneOf(&c.Log.Resolve, v, switches) }},
	"KILL_ROUTE":         {"output.runcmd.settings.route", setting("runcmd", "route")},
	"KILL_RUN_CMD":       {"output.runcmd.settings.command", setting("runcmd", "command")},
	"KILL_RUN_CMD_FIRST": {"output.runcmd.settings.command_first", switchSetting("runcmd", "command_first")},
	"KILL_HOSTS_DENY":    {"output.hostsdeny.settings.line", setting("hostsdeny", "line")},
	keyIgnoreStatus:      {"output.runcmd.settings.ignore_status", switchSetting("runcmd", "ignore_status")},
}

// keyIgnoreStatus is a key of our own: to PortSentry every command succeeds, and
// whoever relies on that says so here. PortSentry 2 refuses it as unknown, and
// PortSentry 1.2 passes over it.
const keyIgnoreStatus = "KILL_IGNORE_STATUS"

// reactions and switches are values by the digit that selects them.
var (
	reactions = []Reaction{ReactOff, ReactBan, ReactCommand}
	switches  = []bool{false, true}
)

// portSentry2 returns the dialect of PortSentry 2 in the given mode.
func portSentry2(mode Mode) dialect {
	return func(d *diagnosis, text []byte) Config { return parsePortSentry(d, mode, text) }
}

// parsePortSentry reads text as PortSentry 2 does, except that it does not
// take a key cut short for the key.
func parsePortSentry(d *diagnosis, mode Mode, text []byte) Config {
	c := Config{
		Mode:       mode,
		Interfaces: []string{AllButLoopback},
		Log:        Log{SyslogTag: "portsentry"},
	}
	entries, last := portSentryEntries(d, text)
	for _, entry := range entries {
		c.setPortSentry(d, entry, entry.Line == last[entry.Key])
	}
	if c.bans() {
		c.Ban.Evidence = EvidenceClassic
	}
	if c.bans() && c.Ban.File == "" {
		// The native form would have bans end, and of networks.
		c.Ban.For, c.Ban.IPv6Prefix = detector.Forever, 128
	}
	if len(d.faults) == 0 {
		c.checkPortSentry(d)
	}
	return c
}

// A portSentryEntry is a key and its value.
type portSentryEntry struct {
	Place
	value string
}

// portSentryEntries returns the entries of text in their order, and the line of
// each key that is in force.
func portSentryEntries(d *diagnosis, text []byte) (entries []portSentryEntry, last map[string]int) {
	last = make(map[string]int)
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if strings.ContainsRune("#\r\n", rune(line[0])) {
			continue
		}
		key, value, fault := splitPortSentryLine(line, n)
		place := Place{File: d.file, Line: n, Key: key}
		if fault != nil {
			d.add(place, *fault)
			continue
		}
		entries = append(entries, portSentryEntry{place, value})
		last[key] = n
	}
	return entries, last
}

// splitPortSentryLine takes line n apart into key and value. The key is empty
// if the line has none that we know.
func splitPortSentryLine(line string, n int) (key, value string, fault *Fault) {
	bad := func(problem, upstream string) (string, string, *Fault) {
		return key, "", &Fault{Text: problem, Upstream: fmt.Sprintf(upstream, n)}
	}
	rest := strings.TrimLeft(line, keyLetters)
	key = line[:len(line)-len(rest)]
	if _, known := portSentryKeys[key]; !known {
		const upstream = "Invalid config file entry at line %d"
		if name := key; name != "" {
			key = ""
			return bad("unknown key "+strconv.Quote(name)+hintPortSentry(name), upstream)
		}
		return bad(`no key in the first column; write KEY="value", or # before a comment`, upstream)
	}
	rest, found := strings.CutPrefix(strings.TrimLeft(rest, " \t"), "=")
	if !found {
		return bad("no = after the key", "Invalid character found after config key. Require equals (=) after key. Line %d")
	}
	rest, found = strings.CutPrefix(strings.TrimLeft(rest, " \t"), `"`)
	if !found {
		return bad(`no " before the value`, `Invalid value on line %d, require quote character (") to start value`)
	}
	start := len(line) - len(rest)
	value, _, found = strings.Cut(line[start:min(len(line), max(start, maxPortSentryLine))], `"`)
	switch {
	case !found && len(line) > maxPortSentryLine:
		return bad(fmt.Sprintf(`no " after the value within %d bytes`, maxPortSentryLine), noEndQuote)
	case !found:
		return bad(`no " after the value`, noEndQuote)
	case value == "":
		return bad("empty value; put # before the line to leave the key unset", "Invalid value at line %d, require a value")
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		return key, "", &Fault{Text: notPlainText}
	}
	return key, value, nil
}

// keyLetters are the characters of a key.
const keyLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"

const notPlainText = "value is not plain text; save the file as UTF-8, without zero bytes"

const noEndQuote = `Invalid value at line %d, require an end quote character (") at end of value`

// hintPortSentry says what to do about an unknown key, if we know.
func hintPortSentry(key string) string {
	if strings.HasPrefix(key, "ADVANCED_") {
		return "; it belongs to PortSentry 1.2, whose files need its modes: portsnare config convert --modes tcp,udp FILE"
	}
	return ""
}

// setPortSentry gives a key its value, which the last entry of the key does for
// good.
func (c *Config) setPortSentry(d *diagnosis, entry portSentryEntry, last bool) {
	key := portSentryKeys[entry.Key]
	if before, again := d.places[key.native]; again {
		d.warn(entry.Place, "set again; the value of line %d is not used", before.Line)
	}
	d.places[key.native] = entry.Place

	faults := key.set(c, entry.value)
	ports := key.native == "detect.tcp_ports" || key.native == "detect.udp_ports"
	if ports && strings.Trim(entry.value, ",") == "" {
		// PortSentry stops at this one wherever it stands.
		d.add(entry.Place, Fault{Text: "lists no port", Upstream: "Unable to parse " + entry.Key + " directive in config file"})
		return
	}
	if !ports && len(faults) > 0 && entry.Key != keyIgnoreStatus {
		faults[0].Upstream = "Invalid config file entry for " + entry.Key
	}
	for _, f := range faults {
		if ports && !last { // PortSentry goes on after what is wrong with a port
			d.addWarning(entry.Place, Warning{Text: f.Text, Upstream: f.Upstream})
			continue
		}
		d.add(entry.Place, f)
	}
}

// checkPortSentry makes PortSentry's checks of the whole file, in its order.
func (c *Config) checkPortSentry(d *diagnosis) {
	whole := Place{File: d.file}
	if c.Detect.TCPPorts.Len() == 0 && c.Detect.UDPPorts.Len() == 0 {
		d.add(whole, Fault{
			Text:     "no trap ports; set TCP_PORTS or UDP_PORTS",
			Upstream: "Selected mode: " + c.portSentryMode() + ", but no TCP_PORTS or UDP_PORTS specified in config file",
		})
	}
	if c.reacts(ReactCommand) && c.lacksMeans(ReactCommand) {
		const text = "KILL_RUN_CMD must be specified if BLOCK_TCP or BLOCK_UDP is set to 2"
		d.add(whole, Fault{Text: text, Upstream: text})
	}
	if c.reacts(ReactBan) && c.Outputs["hostsdeny"].Text("line") == "" && c.Outputs["runcmd"].Text("route") == "" {
		const text = "KILL_HOSTS_DENY and/or KILL_ROUTE must be specified if BLOCK_TCP or BLOCK_UDP is set to 1"
		d.add(whole, Fault{Text: text, Upstream: text})
	}
}

// portSentryMode returns the word of PortSentry 2 for the mode.
func (c *Config) portSentryMode() string {
	if c.Mode == Trap {
		return "connect"
	}
	return "stealth"
}

// bans reports whether a scan over any protocol leads to more than a report.
func (c *Config) bans() bool { return c.reacts(ReactBan) || c.reacts(ReactCommand) }

func (c *Config) reacts(r Reaction) bool { return c.Ban.TCP == r || c.Ban.UDP == r }

// lacksMeans reports whether no setting says how to carry out a reaction.
func (c *Config) lacksMeans(r Reaction) bool {
	switch r {
	case ReactCommand:
		return c.Outputs["runcmd"].Text("command") == ""
	case ReactBan:
		return !slices.ContainsFunc(slices.Collect(maps.Keys(c.Outputs)), c.actsOnBans)
	}
	return false
}

// actsOnBans reports whether the output is one that may. Of a module that we do
// not know, it alone can tell.
func (c *Config) actsOnBans(output string) bool {
	o := c.Outputs[output]
	switch output {
	case "runcmd":
		return o.Text("command") != "" || o.Text("route") != "" || o.Settings["ban"] != nil
	case "hostsdeny":
		return o.Text("line") != "" || !c.ActsAsPortSentry()
	}
	return c.Ban.File == "" // what PortSentry's file keeps, no module is told
}

// setOutput sets one setting of an output.
func (c *Config) setOutput(output, name string, value any) {
	if c.Outputs == nil {
		c.Outputs = make(map[string]Output)
	}
	o := c.Outputs[output]
	if o.Settings == nil {
		o.Settings = make(map[string]any)
	}
	o.Settings[name] = value
	c.Outputs[output] = o
}

// setting returns the setter of a key that is a setting of an output.
func setting(output, name string) func(*Config, string) Faults {
	return func(c *Config, v string) Faults {
		c.setOutput(output, name, v)
		return nil
	}
}

// switchSetting is [setting] for one that is on or off.
func switchSetting(output, name string) func(*Config, string) Faults {
	return func(c *Config, v string) Faults {
		var on bool
		faults := oneOf(&on, v, switches)
		c.setOutput(output, name, on)
		return faults
	}
}

// oneOf sets dst to the choice whose index value is.
func oneOf[T any](dst *T, value string, choices []T) Faults {
	for i, choice := range choices {
		if value == strconv.Itoa(i) {
			*dst = choice
			return nil
		}
	}
	last := len(choices) - 1
	return Faults{{Text: fmt.Sprintf("%q is not a number from 0 to %d", value, last)}}
}

// digits reads a decimal number without sign.
func digits(value string) (int, Faults) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return 0, Faults{{Text: fmt.Sprintf("%q is not a number from 0 to %d", value, maxTrigger)}}
	}
	return int(n), nil
}

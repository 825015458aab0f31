package conf

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/portsnare/portsnare/detector"
)

// This file reads the configuration of PortSentry 1.2, which differs from that
// of PortSentry 2 in spite of its looks: the first of two equal keys counts,
// what is not understood is passed over, and the ports to watch depend on the
// word that the program was started with.

// A ModeWord is one of the six words that PortSentry 1.2 takes as its only
// argument, without the dash: "tcp" and "udp" open the ports of TCP_PORTS and
// UDP_PORTS, "stcp" and "sudp" sniff for them, "atcp" and "audp" sniff for the
// low ports that ADVANCED_PORTS_... and ADVANCED_EXCLUDE_... choose.
type ModeWord string

var modeWords = []ModeWord{"tcp", "stcp", "atcp", "udp", "sudp", "audp"}

// ParseModeWords reads a list such as "tcp,sudp": at least one word, and at most
// one for a protocol.
func ParseModeWords(list string) ([]ModeWord, error) {
	var words []ModeWord
	for word := range strings.SplitSeq(list, ",") {
		words = append(words, ModeWord(word))
	}
	return words, checkModeWords(words)
}

func checkModeWords(words []ModeWord) error {
	if len(words) == 0 {
		return fmt.Errorf("no mode; use %s", listWords(modeWords))
	}
	chosen := make(map[detector.Proto]ModeWord)
	for _, word := range words {
		if !slices.Contains(modeWords, word) {
			return fmt.Errorf("%q is no mode; use %s", word, listWords(modeWords))
		}
		if other, twice := chosen[word.proto()]; twice {
			return fmt.Errorf("%s and %s are both for %s; choose one", other, word, word.proto())
		}
		chosen[word.proto()] = word
	}
	return nil
}

// listWords names words for a message.
func listWords(words []ModeWord) string {
	last := len(words) - 1
	var b strings.Builder
	for i, word := range words {
		switch i {
		case 0:
		case last:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(word))
	}
	return b.String()
}

func (w ModeWord) proto() detector.Proto {
	if strings.HasSuffix(string(w), "udp") {
		return detector.UDP
	}
	return detector.TCP
}

// opens reports whether the mode opens its ports.
func (w ModeWord) opens() bool { return w == "tcp" || w == "udp" }

// advanced reports whether the mode watches the low ports instead of a list.
func (w ModeWord) advanced() bool { return w[0] == 'a' }

// LoadPortSentry1 reads a configuration of PortSentry 1.2 for a program that was
// started once with each of words, of which there is at most one for a
// protocol. An error is always a [Faults].
func LoadPortSentry1(path string, words ...ModeWord) (Config, []Warning, error) {
	return load(path, portSentry1(words), func(path string) string {
		return "adminalert: Cannot open config file: " + path + ". Exiting"
	})
}

// portSentry1 returns the dialect of PortSentry 1.2 in the given modes.
func portSentry1(words []ModeWord) dialect {
	return func(d *diagnosis, text []byte) Config {
		if err := checkModeWords(words); err != nil {
			d.fault(Place{File: d.file}, "%v", err)
			return Config{}
		}
		f := portSentry1File{diagnosis: d, entries: make(map[string]portSentry1Entry)}
		f.read(text)
		if len(d.faults) > 0 {
			return Config{} // a key whose value is no text would seem to be missing too
		}
		return f.config(words)
	}
}

// A portSentry1File is a file taken apart.
type portSentry1File struct {
	*diagnosis
	entries map[string]portSentry1Entry // by key: its first
}

// A portSentry1Entry is the value of a key, which is empty where PortSentry
// passes over it.
type portSentry1Entry struct {
	Place
	value string
}

// portSentry1Ports are the keys that only say which ports are watched. Which of
// them matter depends on the modes.
var portSentry1Ports = []string{
	"TCP_PORTS", "ADVANCED_PORTS_TCP", "ADVANCED_EXCLUDE_TCP",
	"UDP_PORTS", "ADVANCED_PORTS_UDP", "ADVANCED_EXCLUDE_UDP",
}

// A portSentry1Number says how the number of a key is taken.
type portSentry1Number struct{ highest, above int } // above stands for what exceeds highest

var portSentry1Numbers = map[string]portSentry1Number{
	"SCAN_TRIGGER":       {highest: 50, above: 0}, // it remembers 50 probes, and reacts at once if they cannot suffice
	"BLOCK_TCP":          {highest: 2, above: 0},
	"BLOCK_UDP":          {highest: 2, above: 0},
	"RESOLVE_HOST":       {highest: 1, above: 1},
	"KILL_RUN_CMD_FIRST": {highest: 1, above: 1},
}

// read collects the entries of text, and warns of all that is passed over.
func (f *portSentry1File) read(text []byte) {
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line[0] == '#' || strings.TrimSpace(line) == "" {
			continue
		}
		rest := strings.TrimLeft(line, keyLetters)
		place := Place{File: f.file, Line: n}
		key := line[:len(line)-len(rest)]
		_, known := portSentryKeys[key]
		if !known && !slices.Contains(portSentry1Ports, key) {
			f.warn(place, "%s; the line is passed over", unknownPortSentry1(key))
			continue
		}
		place.Key = key
		f.entry(place, rest)
	}
}

func unknownPortSentry1(key string) string {
	if key == "" {
		return "no key in the first column"
	}
	return "unknown key " + strconv.Quote(key)
}

// entry takes what follows the key at place.
func (f *portSentry1File) entry(place Place, rest string) {
	rest, found := strings.CutPrefix(strings.TrimLeft(rest, " \t"), "=")
	if !found {
		f.warn(place, "no = after the key; the line is passed over")
		return
	}
	if first, again := f.entries[place.Key]; again {
		f.warn(place, "set again; the value of line %d is used", first.Line)
		return
	}
	_, rest, found = strings.Cut(rest, `"`)
	if !found {
		f.entries[place.Key] = portSentry1Entry{Place: place}
		f.addWarning(place, Warning{
			Text:     `no " before the value; the key counts as missing`,
			Upstream: "adminalert: Quotes missing from " + place.Key + " token. Option skipped",
		})
		return
	}
	value, _, found := strings.Cut(rest, `"`)
	switch {
	case !found:
		f.warn(place, `no " after the value; the line is passed over`)
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		f.fault(place, notPlainText)
	default:
		f.entries[place.Key] = portSentry1Entry{place, value}
	}
}

// config returns what the entries mean in the given modes.
func (f *portSentry1File) config(words []ModeWord) Config {
	c := Config{
		Interfaces: []string{AllInterfaces},
		Log:        Log{NoStdout: true, Syslog: true, SyslogTag: "portsentry", Format: LinesPortSentry1, HistoryFormat: HistoryPortSentry1},
	}
	f.require("BLOCKED_FILE", "HISTORY_FILE", "IGNORE_FILE")
	f.wantTrigger()
	byLine := func(a, b portSentry1Entry) int { return cmp.Compare(a.Line, b.Line) }
	for _, entry := range slices.SortedFunc(maps.Values(f.entries), byLine) {
		f.set(&c, entry)
	}
	if c.bans() {
		c.Ban.Evidence = EvidenceClassic
	}
	f.wantActions(&c)
	f.watch(&c, words)
	return c
}

// require records a fault for every key that is missing.
func (f *portSentry1File) require(keys ...string) {
	for _, key := range keys {
		if f.entries[key].value == "" {
			f.add(f.place(key), Fault{
				Text:     "missing; PortSentry 1.2 does not start without it",
				Upstream: "InitConfig: Cannot retrieve " + key + " option! Aborting",
			})
		}
	}
}

func (f *portSentry1File) wantTrigger() {
	if f.entries["SCAN_TRIGGER"].value == "" {
		f.addWarning(f.place("SCAN_TRIGGER"), Warning{
			Text:     "missing; the first probe of a source is a scan",
			Upstream: "adminalert: ERROR: Could not read SCAN_TRIGGER option from config file. Disabling SCAN DETECTION TRIGGER",
		})
	}
}

// place returns where key is set, or should be.
func (f *portSentry1File) place(key string) Place {
	if entry, ok := f.entries[key]; ok {
		return entry.Place
	}
	return Place{File: f.file, Key: key}
}

// set gives a key its value, unless the key is about ports.
func (f *portSentry1File) set(c *Config, entry portSentry1Entry) {
	if entry.value == "" || slices.Contains(portSentry1Ports, entry.Key) {
		return
	}
	key := portSentryKeys[entry.Key]
	f.places[key.native] = entry.Place
	value := entry.value
	if number, ok := portSentry1Numbers[entry.Key]; ok {
		value = strconv.Itoa(f.number(entry, number))
	}
	for _, fault := range key.set(c, value) {
		f.add(entry.Place, fault)
	}
}

// number returns the number that an entry stands for.
func (f *portSentry1File) number(entry portSentry1Entry, number portSentry1Number) int {
	n, rest := leadingDigits(entry.value)
	counts := n
	if n > number.highest {
		counts = number.above
	}
	if rest != "" || n != counts {
		f.warn(entry.Place, "%q counts as %d", entry.value, counts)
	}
	return counts
}

// leadingDigits reads the number at the start of s, which blanks may surround
// and which is 0 without digits. It stops to grow above what any key allows.
func leadingDigits(s string) (n int, rest string) {
	s = strings.Trim(s, " \t")
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	for _, c := range []byte(s[:digits]) {
		n = min(n*10+int(c-'0'), 1<<20)
	}
	if digits == 0 {
		return 0, cmp.Or(s, "nothing")
	}
	return n, s[digits:]
}

// wantActions warns of reactions without a means.
func (f *portSentry1File) wantActions(c *Config) {
	command := c.hasSetting("runcmd", "command")
	anything := command || c.hasSetting("runcmd", "route") || c.hasSetting("hostsdeny", "line")
	warn := func(r Reaction, key string) {
		switch {
		case r == ReactBan && !anything:
			f.warn(f.place(key), "nothing is done without KILL_ROUTE, KILL_HOSTS_DENY or KILL_RUN_CMD")
		case r == ReactCommand && !command:
			f.warn(f.place(key), "nothing is done without KILL_RUN_CMD")
		}
	}
	warn(c.Ban.TCP, "BLOCK_TCP")
	warn(c.Ban.UDP, "BLOCK_UDP")
}

// watch sets the mode and the ports that the words choose.
func (f *portSentry1File) watch(c *Config, words []ModeWord) {
	opened := 0
	for _, word := range words {
		if word.opens() {
			opened++
		}
	}
	switch opened {
	case 0:
		c.Mode = Stealth
	case len(words):
		c.Mode = Trap
	default:
		c.Mode = Both
	}
	for _, word := range words {
		tcp, udp, table := &c.Detect.TCPPorts, &c.Detect.UDPPorts, "detect"
		if c.Mode == Both && word.opens() {
			tcp, udp, table = &c.Trap.TCPPorts, &c.Trap.UDPPorts, "trap"
		}
		if word.proto() == detector.UDP {
			*udp = f.ports(word, table+".udp_ports")
		} else {
			*tcp = f.ports(word, table+".tcp_ports")
		}
	}
}

// ports returns the ports of one mode, which go to a native key.
func (f *portSentry1File) ports(word ModeWord, native string) detector.PortSet {
	if word.advanced() {
		return f.lowPorts(word.proto(), native)
	}
	key := word.proto().String() + "_PORTS"
	entry := f.entries[key]
	if entry.value == "" {
		f.add(f.place(key), Fault{
			Text:     "missing; mode " + string(word) + " needs it",
			Upstream: "adminalert: ERROR: Could not read " + key + " option from config file",
		})
		return detector.PortSet{}
	}
	f.places[native] = entry.Place
	ports := f.portList(entry)
	if ports.Len() == 0 {
		f.fault(entry.Place, "lists no port")
	}
	return ports
}

// maxPortSentry1Ports is how many ports of a list PortSentry 1.2 watches.
const maxPortSentry1Ports = 64

// portList reads a list of ports as PortSentry 1.2 does, except that it may be
// longer and that what is no port is left out.
func (f *portSentry1File) portList(entry portSentry1Entry) detector.PortSet {
	var (
		ranges []detector.PortRange
		tokens int
	)
	for token := range strings.SplitSeq(entry.value, ",") {
		if token == "" {
			continue
		}
		tokens++
		n, rest := leadingDigits(token)
		switch {
		case n == 0 || n > maxPort:
			f.warn(entry.Place, "%q is no port from 1 to %d; it is left out", token, maxPort)
			continue
		case rest != "":
			f.warn(entry.Place, "%q counts as %d", token, n)
		}
		ranges = append(ranges, detector.PortRange{First: uint16(n), Last: uint16(n)})
	}
	if tokens > maxPortSentry1Ports {
		f.warn(entry.Place, "all %d ports count; PortSentry 1.2 watches the first %d", tokens, maxPortSentry1Ports)
	}
	return detector.NewPortSet(ranges...)
}

const (
	maxPort         = 1<<16 - 1
	defaultLowPorts = 1024 // when ADVANCED_PORTS_... is missing
)

// lowPorts returns the ports of an advanced mode without those in use, which
// the service check leaves out later.
//
// Port 0 is no port to us. PortSentry 1.2 watches every port if none is
// excluded; that is not what the key says, and we do what it says.
func (f *portSentry1File) lowPorts(proto detector.Proto, native string) detector.PortSet {
	limitKey, limit := "ADVANCED_PORTS_"+proto.String(), defaultLowPorts
	if entry := f.entries[limitKey]; entry.value != "" {
		limit = f.number(entry, portSentry1Number{highest: maxPort + 1, above: maxPort + 1})
	}
	var excluded detector.PortSet
	if entry := f.entries["ADVANCED_EXCLUDE_"+proto.String()]; entry.value != "" {
		excluded = f.portList(entry)
	}
	place := f.place(limitKey)
	f.places[native] = place
	ports := portsBelow(limit, excluded)
	if ports.Len() == 0 {
		f.fault(place, "leaves no port to watch")
	}
	return ports
}

// portsBelow returns the ports from 1 to limit-1 without those excluded.
func portsBelow(limit int, excluded detector.PortSet) detector.PortSet {
	var ranges []detector.PortRange
	first := 1
	upTo := func(last int) {
		if first <= last {
			ranges = append(ranges, detector.PortRange{First: uint16(first), Last: uint16(last)})
		}
	}
	for _, r := range excluded.Ranges() {
		upTo(min(int(r.First), limit) - 1)
		first = int(r.Last) + 1
	}
	upTo(limit - 1)
	return detector.NewPortSet(ranges...)
}

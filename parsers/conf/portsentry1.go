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
		if other, twice := chosen[word.Proto()]; twice {
			return fmt.Errorf("%s and %s are both for %s; choose one", other, word, word.Proto())
		}
		chosen[word.Proto()] = word
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

// Proto returns the protocol that the mode is for.
func (w ModeWord) Proto() detector.Proto {
	if strings.HasSuffix(string(w), "udp") {
		return detector.UDP
	}
	return detector.TCP
}

// Opens reports whether the mode opens its ports; the others sniff.
func (w ModeWord) Opens() bool { return w == "tcp" || w == "udp" }

// Advanced reports whether the mode watches the low ports instead of a list.
func (w ModeWord) Advanced() bool { return w == "atcp" || w == "audp" }

// A PortSentry1 is a configuration of PortSentry 1.2, with what its program
// tells or does and a Config cannot say.
type PortSentry1 struct {
	Config

	// Listed are the ports of the modes that have a list, in the order of the
	// modes and the file, with those that stand there twice.
	Listed []uint16

	// LowPorts has an entry for each advanced mode, in the order in which the
	// modes were given.
	LowPorts []LowPorts

	// Idle are the reactions that nothing carries out. PortSentry 1.2 starts
	// all the same, and reports every scan as one that it could not block; the
	// native form of the Config is refused for each.
	Idle Faults
}

// LowPorts are the ports of an advanced mode: those from 1 to Limit-1 but the
// excluded ones.
type LowPorts struct {
	Word     ModeWord
	Limit    int      // of ADVANCED_PORTS_..., or 1024
	Excluded []uint16 // of ADVANCED_EXCLUDE_..., in the order of the file
}

// LoadPortSentry1 reads a configuration of PortSentry 1.2 for a program that was
// started once with each of words, of which there is at most one for a
// protocol. Ban.File is the file of the first one. An error is always a
// [Faults].
func LoadPortSentry1(path string, words ...ModeWord) (PortSentry1, []Warning, error) {
	var p PortSentry1
	c, warnings, err := load(path, p.dialect(words), func(path string) string {
		return "adminalert: Cannot open config file: " + path + ". Exiting"
	})
	p.Config = c
	return p, warnings, err
}

// dialect returns the dialect of PortSentry 1.2 in the given modes. It leaves in
// p what the Config cannot say.
func (p *PortSentry1) dialect(words []ModeWord) dialect {
	return func(d *diagnosis, text []byte) Config {
		if err := checkModeWords(words); err != nil {
			d.fault(Place{File: d.file}, "%v", err)
			return Config{}
		}
		f := portSentry1File{diagnosis: d, result: p, entries: make(map[string]portSentry1Entry)}
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
	result  *PortSentry1                // what is said of it there belongs to no Config
	entries map[string]portSentry1Entry // by key: its first
}

// A portSentry1Entry is the value of a key. Where PortSentry passes over it, it is
// empty and not given.
type portSentry1Entry struct {
	Place
	value string
	given bool
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
	"KILL_IGNORE_STATUS": {highest: 1, above: 1},
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
		f.entries[place.Key] = portSentry1Entry{place, value, true}
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
	f.nameBanFile(&c, words)
	return c
}

// nameBanFile names the file of banned sources as the program does, which is
// started once for each mode and keeps a file for each.
func (f *portSentry1File) nameBanFile(c *Config, words []ModeWord) {
	c.Ban.FileFormat = BanFilePortSentry1
	if c.Ban.File == "" {
		return
	}
	c.Ban.File += "." + string(words[0])
	if len(words) > 1 {
		f.warn(f.place("BLOCKED_FILE"), "PortSentry 1.2 keeps a file for each mode; here %s is the one for all", c.Ban.File)
	}
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
	f.wantNumber("SCAN_TRIGGER", "the first probe of a source is a scan", "Disabling SCAN DETECTION TRIGGER")
}

// wantNumber warns of a missing number: of what follows, in our words and in
// PortSentry's, which has none if the value is empty.
func (f *portSentry1File) wantNumber(key, ours, upstream string) {
	entry := f.entries[key]
	if entry.value != "" {
		return
	}
	w := Warning{Text: "missing; " + ours}
	if !entry.given {
		w.Upstream = "adminalert: ERROR: Could not read " + key + " option from config file. " + upstream
	}
	f.addWarning(f.place(key), w)
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

// wantActions warns of reactions that nothing carries out.
func (f *portSentry1File) wantActions(c *Config) {
	want := func(r Reaction, key string) {
		if !c.lacksMeans(r) {
			return
		}
		text := "nothing is done without KILL_RUN_CMD"
		if r == ReactBan {
			text = "nothing is done without KILL_ROUTE, KILL_HOSTS_DENY or KILL_RUN_CMD"
		}
		f.warn(f.place(key), "%s", text)
		f.result.Idle = append(f.result.Idle, Fault{Place: f.place(key), Text: text + "; name one, or set this key to 0"})
	}
	want(c.Ban.TCP, "BLOCK_TCP")
	want(c.Ban.UDP, "BLOCK_UDP")
}

// watch sets the mode and the ports that the words choose.
func (f *portSentry1File) watch(c *Config, words []ModeWord) {
	opened := 0
	for _, word := range words {
		if word.Opens() {
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
		if c.Mode == Both && word.Opens() {
			tcp, udp, table = &c.Trap.TCPPorts, &c.Trap.UDPPorts, "trap"
		}
		if word.Proto() == detector.UDP {
			*udp = f.ports(word, table+".udp_ports")
			c.Detect.Broadcasts = !word.Opens()
		} else {
			*tcp = f.ports(word, table+".tcp_ports")
		}
	}
}

// ports returns the ports of one mode, which go to a native key.
func (f *portSentry1File) ports(word ModeWord, native string) detector.PortSet {
	if word.Advanced() {
		return f.lowPorts(word, native)
	}
	key := word.Proto().String() + "_PORTS"
	entry := f.entries[key]
	if !entry.given {
		f.add(f.place(key), Fault{
			Text:     "missing; mode " + string(word) + " needs it",
			Upstream: "adminalert: ERROR: Could not read " + key + " option from config file",
		})
		return detector.PortSet{}
	}
	f.places[native] = entry.Place
	ports := f.portList(entry)
	if len(ports) == 0 {
		f.add(entry.Place, Fault{
			Text:     "lists no port; mode " + string(word) + " needs one",
			Upstream: "adminalert: ERROR: No " + word.Proto().String() + " ports supplied in config file. Aborting",
		})
	}
	f.result.Listed = append(f.result.Listed, ports...)
	return portSetOf(ports)
}

func portSetOf(ports []uint16) detector.PortSet {
	ranges := make([]detector.PortRange, len(ports))
	for i, port := range ports {
		ranges[i] = detector.PortRange{First: port, Last: port}
	}
	return detector.NewPortSet(ranges...)
}

// maxPortSentry1Ports is how many ports of a list PortSentry 1.2 watches.
const maxPortSentry1Ports = 64

// portList reads a list of ports as PortSentry 1.2 does, except that it may be
// longer and that what is no port is left out.
func (f *portSentry1File) portList(entry portSentry1Entry) []uint16 {
	var (
		ports  []uint16
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
		ports = append(ports, uint16(n))
	}
	if tokens > maxPortSentry1Ports {
		f.warn(entry.Place, "all %d ports count; PortSentry 1.2 watches the first %d", tokens, maxPortSentry1Ports)
	}
	return ports
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
func (f *portSentry1File) lowPorts(word ModeWord, native string) detector.PortSet {
	proto := word.Proto().String()
	low := LowPorts{Word: word, Limit: defaultLowPorts}
	limitKey := "ADVANCED_PORTS_" + proto
	f.wantNumber(limitKey, fmt.Sprintf("the ports below %d are watched", defaultLowPorts), fmt.Sprintf("Assuming %d.", defaultLowPorts))
	if entry := f.entries[limitKey]; entry.value != "" {
		low.Limit = f.number(entry, portSentry1Number{highest: maxPort + 1, above: maxPort + 1})
	}
	if entry := f.entries["ADVANCED_EXCLUDE_"+proto]; entry.value != "" {
		low.Excluded = f.portList(entry)
	}
	f.result.LowPorts = append(f.result.LowPorts, low)
	place := f.place(limitKey)
	f.places[native] = place
	ports := portsBelow(low.Limit, portSetOf(low.Excluded))
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

package logline

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portsnare/portsnare/detector"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	v4     = netip.MustParseAddr("203.0.113.7")
	v6     = netip.MustParseAddr("2001:db8::7")
	target = netip.MustParseAddr("198.51.100.9")
)

// at has more digits than a stamp, to show that they are cut.
var at = time.Date(2026, 11, 22, 7, 44, 33, 659_999_999, time.UTC)

// probe returns the event of a probe that was reported and not acted on.
func probe(source netip.Addr, proto detector.Proto, port uint16, technique detector.Technique) detector.Event {
	return detector.Event{
		At: at,
		Probe: detector.Probe{
			Source:    netip.AddrPortFrom(source, 51234),
			Target:    netip.AddrPortFrom(target, port),
			Proto:     proto,
			Technique: technique,
		},
		Ignored:   detector.False,
		Triggered: detector.True,
		NoBlock:   detector.True,
		Blocked:   detector.False,
	}
}

func with(ev detector.Event, change func(*detector.Event)) detector.Event {
	change(&ev)
	return ev
}

// goldenEvents make testdata/scan.golden, a line each.
var goldenEvents = []detector.Event{
	// The examples of the compatibility specification.
	probe(v6, detector.TCP, 11, detector.TechniqueSYN),
	with(probe(v4, detector.UDP, 111, detector.TechniqueConnect), func(ev *detector.Event) {
		ev.NoBlock, ev.Blocked = detector.False, detector.True
	}),
	// Every technique and every value of the other fields.
	with(probe(v4, detector.TCP, 1, detector.TechniqueSYN), func(ev *detector.Event) {
		ev.Probe.IPOptions = detector.False
	}),
	with(probe(v4, detector.TCP, 7, detector.TechniqueFIN), func(ev *detector.Event) {
		ev.Probe.IPOptions = detector.True
	}),
	probe(v4, detector.TCP, 65535, detector.TechniqueNULL),
	probe(v4, detector.TCP, 9, detector.TechniqueXMAS),
	with(probe(v4, detector.TCP, 9, detector.TechniqueOddFlags), func(ev *detector.Event) {
		ev.Probe.Header.Flags = detector.SYN | detector.FIN | detector.ECE
	}),
	with(probe(v4, detector.TCP, 9, detector.TechniqueOddFlags), func(ev *detector.Event) {
		ev.Probe.Header.Flags = detector.ECE | detector.CWR
	}),
	probe(v6, detector.UDP, 161, detector.TechniqueUDP),
	with(probe(v4, detector.TCP, 1, detector.TechniqueConnect), func(ev *detector.Event) {
		ev.Ignored, ev.Triggered, ev.NoBlock, ev.Blocked = detector.True, detector.Unset, detector.Unset, detector.Unset
	}),
	with(probe(v4, detector.TCP, 1, detector.TechniqueConnect), func(ev *detector.Event) {
		ev.Triggered, ev.NoBlock, ev.Blocked = detector.False, detector.Unset, detector.Unset
	}),
	// The zone of an address does not stand in the line.
	probe(netip.MustParseAddr("fe80::1%eth0.7"), detector.TCP, 1, detector.TechniqueSYN),
	probe(netip.MustParseAddr("::ffff:203.0.113.7"), detector.TCP, 1, detector.TechniqueSYN),
}

func TestGolden(t *testing.T) {
	history := NewHistory(time.FixedZone("", 2*3600))
	var lines, records []byte
	for i := range goldenEvents {
		lines = append(AppendScan(lines, &goldenEvents[i]), '\n')
		records = history.AppendRecord(records, &goldenEvents[i])
	}
	checkGolden(t, "scan.golden", string(lines))
	checkGolden(t, "history.golden", string(records))
}

func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestParseReadsWhatWePrint(t *testing.T) {
	for i := range goldenEvents {
		ev := &goldenEvents[i]
		line := string(AppendScan(nil, ev))
		got, err := Parse(line)
		if err != nil {
			t.Errorf("Parse(%q): %v", line, err)
			continue
		}
		if diff := cmp.Diff(scanOf(ev), got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", line, diff)
		}
	}
}

// TestRecordIsStampAndLine reads the stamp back, which has milliseconds.
func TestRecordIsStampAndLine(t *testing.T) {
	ev := &goldenEvents[0]
	record := string(NewHistory(time.FixedZone("", -5*3600)).AppendRecord(nil, ev))
	stamp, line, _ := strings.Cut(record, " ")
	got, err := time.Parse(stampLayout, stamp)
	if want := at.Truncate(time.Millisecond); err != nil || !got.Equal(want) {
		t.Errorf("the stamp of %q is %v, %v, want %v", record, got, err, want)
	}
	if want := string(AppendScan(nil, ev)) + "\n"; line != want {
		t.Errorf("after the stamp, %q, want %q", line, want)
	}
}

func TestParseHost(t *testing.T) {
	const format = "Scan from: [2001:db8::7] (HOST) protocol: [TCP] port: [1] type: [Connect] IP opts: [unknown] ignored: [false] triggered: [true] noblock: [true] blocked: [false]"
	tests := map[string]struct{ host, want string }{
		"a name":                          {"scanner.example.net", "scanner.example.net"},
		"a name like an address":          {"192.0.2.1", "192.0.2.1"},
		"the address":                     {"2001:db8::7", ""},
		"the address with a zone":         {"2001:db8::7%eth0", "2001:db8::7%eth0"},
		"the address in another spelling": {"2001:DB8::7", "2001:DB8::7"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			line := strings.Replace(format, "HOST", test.host, 1)
			s, err := Parse(line)
			if err != nil {
				t.Fatal(err)
			}
			if s.Host != test.want || s.Source != v6 {
				t.Errorf("host %q, source %v; want %q, %v", s.Host, s.Source, test.want, v6)
			}
			if again := string(s.Append(nil)); again != line {
				t.Errorf("formatted again: %s\nwant: %s", again, line)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	const good = "Scan from: [203.0.113.7] (203.0.113.7) protocol: [TCP] port: [11] type: [TCP SYN/Normal scan] IP opts: [not set] ignored: [false] triggered: [true] noblock: [true] blocked: [false]"
	if _, err := Parse(good); err != nil {
		t.Fatalf("Parse(%q): %v", good, err)
	}
	odd := strings.Replace(good, "TCP SYN/Normal scan", "Unknown Type: TCP Packet Flags: SYN: 1 FIN: 1 ACK: 0 PSH: 0 URG: 0 RST: 0", 1)
	tests := map[string]struct{ line, old, replacement string }{
		"nothing":                      {good, good, ""},
		"text before":                  {good, "Scan", " Scan"},
		"text after":                   {good, "blocked: [false]", "blocked: [false] "},
		"a newline":                    {good, "blocked: [false]", "blocked: [false]\n"},
		"cut short":                    {good, "]", ""},
		"a field missing":              {good, " ignored: [false]", ""},
		"no address":                   {good, "[203.0.113.7]", "[scanner]"},
		"a zone in the address":        {good, "[203.0.113.7]", "[fe80::1%eth0]"},
		"a mapped address":             {good, "[203.0.113.7]", "[::ffff:203.0.113.7]"},
		"an address spelt otherwise":   {good, "[203.0.113.7]", "[2001:DB8::7]"},
		"no host":                      {good, "(203.0.113.7)", "()"},
		"a host that forges a field":   {good, "(203.0.113.7)", "(x] protocol: [UDP)"},
		"a host that is too long":      {good, "(203.0.113.7)", "(" + strings.Repeat("a", maxHost+1) + ")"},
		"another protocol":             {good, "[TCP]", "[SCTP]"},
		"port zero":                    {good, "[11]", "[0]"},
		"port with a leading zero":     {good, "[11]", "[011]"},
		"port with a sign":             {good, "[11]", "[+11]"},
		"port too high":                {good, "[11]", "[65536]"},
		"no port":                      {good, "[11]", "[]"},
		"an unknown type":              {good, "TCP SYN/Normal scan", "SYN"},
		"no type":                      {good, "TCP SYN/Normal scan", ""},
		"a type of the other protocol": {good, "TCP SYN/Normal scan", "UDP"},
		"a protocol of another type":   {good, "[TCP]", "[UDP]"},
		"a flag missing":               {odd, " RST: 0", ""},
		"a flag without a value":       {odd, "RST: 0", "RST: "},
		"a flag that is neither":       {odd, "RST: 0", "RST: 2"},
		"a flag with two digits":       {odd, "RST: 0", "RST: 00"},
		"flags in another order":       {odd, "SYN: 1 FIN: 1", "FIN: 1 SYN: 1"},
		"unknown options":              {good, "not set", "none"},
		"unknown truth":                {good, "triggered: [true]", "triggered: [True]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			line := strings.Replace(test.line, test.old, test.replacement, 1)
			if s, err := Parse(line); err == nil {
				t.Errorf("Parse(%q) = %+v, want an error", line, s)
			}
		})
	}
}

// maxRecord is how much of a record readers of PortSentry's history have room
// for.
const maxRecord = 1023

// The longest record still fits the buffers of its readers.
func TestLongestRecord(t *testing.T) {
	ev := probe(netip.MustParseAddr("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"), detector.TCP, 65535, detector.TechniqueOddFlags)
	ev.Ignored, ev.NoBlock = detector.False, detector.False
	record := NewHistory(time.UTC).AppendRecord(nil, &ev)
	s := scanOf(&ev)
	s.Host = strings.Repeat("z", 4000)
	if named := len(record) + len(s.Append(nil)) - len(AppendScan(nil, &ev)); named > maxRecord {
		t.Errorf("a record of %d bytes, want at most %d", named, maxRecord)
	}
}

func FuzzAppendScan(f *testing.F) {
	f.Add([]byte{203, 0, 113, 7}, "", uint16(11), uint8(detector.TechniqueSYN), uint8(detector.SYN), uint8(0b01_10_01_00))
	f.Add(v6.AsSlice(), "eth0", uint16(1), uint8(detector.TechniqueOddFlags), uint8(0), uint8(0))
	f.Add(v6.AsSlice(), "x\n) [", uint16(1), uint8(detector.TechniqueUDP), uint8(0), uint8(0xff))
	f.Fuzz(func(t *testing.T, addr []byte, zone string, port uint16, technique, flags, outcome uint8) {
		source, ok := netip.AddrFromSlice(addr)
		if !ok || port == 0 {
			return
		}
		ev := probe(source.WithZone(zone), detector.TCP, port, detector.Technique(technique))
		if ev.Probe.Technique == detector.TechniqueUDP {
			ev.Probe.Proto = detector.UDP
		}
		ev.Probe.Header.Flags = detector.TCPFlags(flags)
		ev.Probe.IPOptions = detector.Tri(outcome % 3)
		ev.Ignored = detector.Tri(outcome >> 2 % 3)
		ev.Triggered = detector.Tri(outcome >> 4 % 3)
		ev.Blocked = detector.Tri(outcome >> 6 % 3)

		line := string(AppendScan(nil, &ev))
		got, err := Parse(line)
		if err != nil {
			t.Fatalf("Parse(%q): %v", line, err)
		}
		if again := string(got.Append(nil)); again != line {
			t.Fatalf("%q, parsed and formatted: %q", line, again)
		}
		if want := scanOf(&ev); got != want {
			t.Fatalf("Parse(%q) = %+v, want %+v", line, got, want)
		}
	})
}

func FuzzParse(f *testing.F) {
	for i := range goldenEvents {
		f.Add(string(AppendScan(nil, &goldenEvents[i])))
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := Parse(line)
		if err != nil {
			return
		}
		if again := string(s.Append(nil)); again != line {
			t.Fatalf("Parse(%q) = %+v, formatted: %q", line, s, again)
		}
	})
}

func TestFormattingAllocatesNothing(t *testing.T) {
	history := NewHistory(time.Local)
	buf := make([]byte, 0, maxRecord)
	events := goldenEvents
	if n := testing.AllocsPerRun(100, func() {
		for i := range events {
			buf = history.AppendRecord(buf[:0], &events[i])
			events[i].At = events[i].At.Add(time.Second)
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d records, want none", n, len(events))
	}
}

func BenchmarkAppendScan(b *testing.B) {
	for name, source := range map[string]netip.Addr{"IPv4": v4, "IPv6": v6} {
		b.Run(name, func(b *testing.B) {
			ev := probe(source, detector.TCP, 11, detector.TechniqueSYN)
			buf := make([]byte, 0, maxRecord)
			b.ReportAllocs()
			for b.Loop() {
				buf = AppendScan(buf[:0], &ev)
			}
		})
	}
}

func BenchmarkAppendRecord(b *testing.B) {
	history := NewHistory(time.Local)
	ev := probe(v4, detector.TCP, 11, detector.TechniqueSYN)
	buf := make([]byte, 0, maxRecord)
	b.ReportAllocs()
	for b.Loop() {
		ev.At = ev.At.Add(2 * time.Microsecond) // half a million a second
		buf = history.AppendRecord(buf[:0], &ev)
	}
}

func BenchmarkParse(b *testing.B) {
	line := string(AppendScan(nil, &goldenEvents[2]))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(line); err != nil {
			b.Fatal(err)
		}
	}
}

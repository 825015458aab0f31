package jsonlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/logfile"
)

var update = flag.Bool("update", false, "rewrite the golden file and the example in docs/events.md")

var at = time.Date(2026, 7, 1, 11, 38, 2, 123_456_789, time.FixedZone("", 2*3600))

// scan returns the event of a SYN that was banned.
func scan(change func(*detector.Event)) detector.Event {
	ev := detector.Event{
		At:       at,
		Sequence: 42,
		Probe: detector.Probe{
			Source:    netip.MustParseAddrPort("203.0.113.7:51234"),
			Target:    netip.MustParseAddrPort("198.51.100.9:111"),
			Proto:     detector.TCP,
			Technique: detector.TechniqueSYN,
			IPOptions: detector.False,
			Interface: "eth0",
		},
		Ignored:   detector.False,
		Triggered: detector.True,
		NoBlock:   detector.False,
		Blocked:   detector.True,
	}
	change(&ev)
	return ev
}

// goldenEvents make testdata/events.golden, a line each. The first is the
// example in docs/events.md.
var goldenEvents = []detector.Event{
	scan(func(*detector.Event) {}),
	scan(func(ev *detector.Event) { ev.Blocked = detector.False }),
	scan(func(ev *detector.Event) { ev.NoBlock, ev.Blocked = detector.True, detector.False }),
	scan(func(ev *detector.Event) {
		ev.Triggered, ev.NoBlock, ev.Blocked = detector.False, detector.Unset, detector.Unset
	}),
	scan(func(ev *detector.Event) {
		ev.Action = detector.ScanIgnored
		ev.Ignored, ev.Triggered, ev.NoBlock, ev.Blocked = detector.True, detector.Unset, detector.Unset, detector.Unset
		ev.Reason = `on the ignore list "office"`
	}),
	scan(func(ev *detector.Event) {
		ev.Probe.Technique, ev.Probe.IPOptions, ev.Probe.Interface = detector.TechniqueConnect, detector.Unset, ""
	}),
	scan(func(ev *detector.Event) { ev.Probe.Technique = detector.TechniqueFIN }),
	scan(func(ev *detector.Event) { ev.Probe.Technique = detector.TechniqueNULL }),
	scan(func(ev *detector.Event) { ev.Probe.Technique = detector.TechniqueXMAS }),
	scan(func(ev *detector.Event) {
		ev.Probe.Technique, ev.Probe.Header.Flags = detector.TechniqueOddFlags, detector.SYN|detector.FIN
	}),
	scan(func(ev *detector.Event) {
		ev.Probe.Proto, ev.Probe.Technique = detector.UDP, detector.TechniqueUDP
		ev.Probe.Source = netip.MustParseAddrPort("[fe80::7%eth0]:51234")
		ev.Probe.Target = netip.MustParseAddrPort("[2001:db8::9]:161")
		ev.Probe.IPOptions = detector.Unset
	}),
	scan(func(ev *detector.Event) { ev.Host, ev.Held = "scanner.example.net", true }),
	scan(func(ev *detector.Event) {
		ev.Acts = []detector.Act{
			{Kind: detector.ActHostsDeny, Text: "ALL: 203.0.113.7 : DENY", Present: true},
			{Kind: detector.ActRoute, Text: `sh -c "false"`, Err: errors.New("exit status 1\tor so")},
			{Kind: detector.ActCommand, Text: "/usr/local/bin/notify 203.0.113.7"},
		}
	}),
	{At: at, Sequence: 5, Action: detector.ServiceReached},
	{At: at, Sequence: 6, Action: detector.AcceptFailed, Probe: detector.Probe{Target: netip.MustParseAddrPort("[::]:111")}, Reason: "accept failed 103: software caused connection abort"},
	{At: at, Sequence: 7, Action: detector.BanBegan, Ban: &detector.Ban{
		Source: netip.MustParsePrefix("203.0.113.0/24"), Until: at.Add(time.Hour), Origin: "operator", Reason: "too \"loud\"",
	}},
	{At: at, Sequence: 8, Action: detector.BanEnded, Ban: &detector.Ban{Source: netip.MustParsePrefix("2001:db8::/64"), Origin: "portsnare"}},
	{At: at, Sequence: 1, Action: detector.DaemonStarted},
	{At: at, Sequence: 2, Action: detector.PacketsLost, Lost: 1234, Reason: "the kernel's buffer was full"},
	{At: at, Sequence: 3, Action: detector.ConfigReloaded},
	{At: at, Sequence: 4, Action: detector.DaemonStopped},
}

var goldenOptions = Options{BootID: "Q7BVTMZ5KXAW3RHJ2ECNUDY4GL", Hostname: "gw.example.net", Version: "0.1.0"}

func deliver(t *testing.T, o Options, events ...detector.Event) string {
	t.Helper()
	var got strings.Builder
	if err := New(logfile.NewStream(&got), o).Deliver(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	return got.String()
}

func TestGolden(t *testing.T) {
	got := deliver(t, goldenOptions, goldenEvents...)
	for _, line := range strings.SplitAfter(strings.TrimSuffix(got, "\n"), "\n") {
		if err := checkRecord(line); err != nil {
			t.Errorf("%v: %s", err, line)
		}
	}
	path := filepath.Join("testdata", "events.golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// The documentation shows what the program writes.
func TestDocumentedExample(t *testing.T) {
	const path, opening, closing = "../../docs/events.md", "```json\n", "```\n"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var example bytes.Buffer
	if err := json.Indent(&example, []byte(deliver(t, goldenOptions, goldenEvents[0])), "", "  "); err != nil {
		t.Fatal(err)
	}
	before, rest, opened := strings.Cut(string(doc), opening)
	shown, after, closed := strings.Cut(rest, closing)
	if !opened || !closed {
		t.Fatalf("%s has no JSON example", path)
	}
	if *update {
		if err := os.WriteFile(path, []byte(before+opening+example.String()+closing+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(shown, example.String()); diff != "" {
		t.Errorf("%s (-shown +written):\n%s", path, diff)
	}
}

func TestNothingKnownOfTheDaemon(t *testing.T) {
	got := deliver(t, Options{}, goldenEvents...)
	for _, key := range []string{`"hostname"`, `"host"`, `"version":""`} {
		if strings.Contains(got, key) {
			t.Errorf("%s in a record of nowhere: %s", key, got)
		}
	}
}

func TestText(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"plain":              {"eth0.7", "eth0.7"},
		"quote":              {`a"b\c`, `a\"b\\c`},
		"control characters": {"a\x00\n\r\x1b[2Jb\x7f\u0085\u009bc", "a[2Jbc"},
		"line separators":    {"a\u2028b\u2029c", "abc"},
		"letters":            {"Zürich 東京", "Zürich 東京"},
		"not UTF-8":          {"a\xffb", "a\ufffdb"},
		"long":               {strings.Repeat("a", 1000), strings.Repeat("a", maxText)},
		"long in characters": {strings.Repeat("€", 1000), strings.Repeat("€", maxText/3)},
		"only a rest":        {strings.Repeat("\x80", 1000), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := string(appendText(nil, test.in)); got != test.want {
				t.Errorf("appendText(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func TestErrorOfTheTarget(t *testing.T) {
	r, w := io.Pipe()
	broken := errors.New("broken")
	if err := r.CloseWithError(broken); err != nil {
		t.Fatal(err)
	}
	if err := New(logfile.NewStream(w), Options{}).Deliver(t.Context(), goldenEvents); !errors.Is(err, broken) {
		t.Errorf("Deliver = %v, want %v", err, broken)
	}
}

// checkRecord holds one line to the rules for every record.
func checkRecord(line string) error {
	if len(line) >= 8<<10 {
		return fmt.Errorf("%d bytes, want less than 8 kB", len(line))
	}
	if !utf8.ValidString(line) {
		return errors.New("not UTF-8")
	}
	for _, r := range strings.TrimSuffix(line, "\n") {
		if r < ' ' || r == 0x7f || r == '\u0085' || r == '\u2028' || r == '\u2029' {
			return fmt.Errorf("control character %U", r)
		}
	}
	d := json.NewDecoder(strings.NewReader(line))
	keys, err := checkValue(d)
	if err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value in a line")
	}
	if len(keys) < 2 || keys[0] != "@timestamp" || keys[1] != "event" {
		return fmt.Errorf("keys in the order %q", keys)
	}
	return nil
}

// checkValue reads one value and returns its keys if it is an object. Nulls and
// keys that occur twice are errors.
func checkValue(d *json.Decoder) (keys []string, err error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	if token == nil {
		return nil, errors.New("a null")
	}
	if token != json.Delim('{') && token != json.Delim('[') {
		return nil, nil
	}
	seen := make(map[string]bool)
	for d.More() {
		if token == json.Delim('{') {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			name := key.(string)
			if seen[name] {
				return nil, fmt.Errorf("key %q twice", name)
			}
			seen[name] = true
			keys = append(keys, name)
		}
		if _, err := checkValue(d); err != nil {
			return nil, err
		}
	}
	_, err = d.Token()
	return keys, err
}

func FuzzRecord(f *testing.F) {
	hostile := "x\"\\\n\u2028\xff{}" + strings.Repeat("\xff", 300)
	f.Add(int64(0), int64(0), uint64(1), uint8(0), []byte{203, 0, 113, 7}, uint16(1), uint8(6), uint8(2), uint8(2), uint8(0), "eth0", "", "host")
	f.Add(int64(1)<<62, int64(0), uint64(1)<<63, uint8(2), make([]byte, 16), uint16(65535), uint8(17), uint8(9), uint8(255), uint8(255), hostile, hostile, hostile)
	f.Fuzz(func(t *testing.T, sec, nsec int64, n uint64, action uint8, addr []byte, port uint16,
		proto, technique, flags, outcome uint8, iface, reason, name string,
	) {
		source, _ := netip.AddrFromSlice(addr)
		source = source.WithZone(iface)
		ev := detector.Event{
			At: time.Unix(sec, nsec), Sequence: n, Action: detector.Action(action), Lost: n, Reason: reason,
			Probe: detector.Probe{
				Source: netip.AddrPortFrom(source, port), Target: netip.AddrPortFrom(source, port),
				Proto: detector.Proto(proto), Technique: detector.Technique(technique),
				Header:    detector.HeaderFacts{Flags: detector.TCPFlags(flags)},
				IPOptions: detector.Tri(outcome >> 6), Interface: iface,
			},
			Ignored: detector.Tri(outcome & 3), Triggered: detector.Tri(outcome >> 2 & 3), Blocked: detector.Tri(outcome >> 4 & 3),
		}
		line := deliver(t, Options{BootID: name, Hostname: name, Version: name}, ev)
		if err := checkRecord(line); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
	})
}

func TestDeliverAllocatesNothing(t *testing.T) {
	w := New(logfile.NewStream(io.Discard), goldenOptions)
	if n := testing.AllocsPerRun(100, func() { _ = w.Deliver(t.Context(), goldenEvents) }); n != 0 {
		t.Errorf("%v allocations a batch, want none", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	for name, ev := range map[string]detector.Event{"IPv4": goldenEvents[0], "IPv6": goldenEvents[10]} {
		b.Run(name, func(b *testing.B) {
			w := New(logfile.NewStream(io.Discard), goldenOptions)
			events := []detector.Event{ev}
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Deliver(b.Context(), events); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(w.buf)))
		})
	}
}

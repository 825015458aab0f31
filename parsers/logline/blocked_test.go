package logline

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

func blocked(source netip.Addr, host string) Blocked {
	return Blocked{At: time.Unix(1795333205, 0).UTC(), Source: source, Host: host, Proto: detector.TCP, Port: 101}
}

// goldenBlocked make testdata/blocked.golden, a record each.
var goldenBlocked = []Blocked{
	// The example of the compatibility specification, with an address of ours.
	blocked(v4, "attacker.example.org"),
	blocked(v4, ""),
	blocked(v6, ""),
	{At: at.In(time.FixedZone("", -5*3600)), Source: v6, Host: "scanner.example.net", Proto: detector.UDP, Port: 65535},
	// Names that want somebody else banned.
	blocked(v4, "198.51.100.66"),
	blocked(v6, "198.51.100.66/198.51.100.66 Port: 1 TCP Blocked"),
	blocked(v4, "x Port: 1 TCP Blocked\n1795333205 - 11/22/2026 07:40:05 Host: x/198.51.100.66 Port: 1 TCP Blocked\n"),
	blocked(v4, "\r\v\u0085\u2028/198.51.100.66 Port: 1 TCP Blocked"),
	blocked(v6, strings.Repeat("a", 4000)),
}

func TestBlockedGolden(t *testing.T) {
	var records []byte
	for i := range goldenBlocked {
		records = append(goldenBlocked[i].Append(records), '\n')
	}
	checkGolden(t, "blocked.golden", string(records))
}

// Fail2Ban's own PortSentry filter bans the sources of the golden records, and
// nobody else.
func TestStockFail2BanReadsBlocked(t *testing.T) {
	const filter = "/etc/fail2ban/filter.d/portsentry.conf"
	command, err := exec.LookPath("fail2ban-regex")
	if err != nil {
		t.Fatalf("%v: apt-get install fail2ban", err)
	}
	var want strings.Builder
	for _, b := range goldenBlocked {
		fmt.Fprintf(&want, "%d.0 %v\n", b.At.Unix(), b.Source)
	}
	cmd := exec.CommandContext(t.Context(), command, "--out", "<time> <ip>", "testdata/blocked.golden", filter)
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, got)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("%s: times and addresses (-want +got)\n%s", filter, diff)
	}
}

func TestAppendBlocked(t *testing.T) {
	tests := map[string]struct {
		source, want string
	}{
		"IPv4":        {"203.0.113.7", "203.0.113.7/203.0.113.7"},
		"IPv4-mapped": {"::ffff:203.0.113.7", "203.0.113.7/203.0.113.7"},
		"IPv6":        {"2001:db8::7", "2001:db8::7/2001:db8::7"},
		"link-local":  {"fe80::1%eth0", "fe80::1/fe80::1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ev := probe(netip.MustParseAddr(test.source), detector.UDP, 161, detector.TechniqueUDP)
			got := string(AppendBlocked(nil, &ev, time.FixedZone("", 2*3600)))
			want := "1795333473 - 11/22/2026 09:44:33 Host: " + test.want + " Port: 161 UDP Blocked"
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestParseBlocked(t *testing.T) {
	const record = "1795329605 - 11/22/2026 02:10:05 Host: scanner.example.net/2001:db8::7 Port: 161 UDP Blocked"
	want := Blocked{
		At:     time.Date(2026, 11, 22, 2, 10, 5, 0, time.FixedZone("", -4*3600-1800)),
		Source: v6,
		Host:   "scanner.example.net",
		Proto:  detector.UDP,
		Port:   161,
	}
	got, err := ParseBlocked(record)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(sameAddr)); diff != "" {
		t.Errorf("ParseBlocked (-want +got)\n%s", diff)
	}
}

func sameAddr(a, b netip.Addr) bool { return a == b }

func TestParseBlockedRefuses(t *testing.T) {
	const good = "1795333205 - 11/22/2026 07:40:05 Host: scanner.example.net/203.0.113.7 Port: 101 TCP Blocked"
	if _, err := ParseBlocked(good); err != nil {
		t.Fatalf("ParseBlocked(%q): %v", good, err)
	}
	tests := map[string]struct{ old, replacement string }{
		"nothing":                    {good, ""},
		"text before":                {"1795333205", " 1795333205"},
		"text after":                 {"Blocked", "Blocked "},
		"a newline":                  {"Blocked", "Blocked\n"},
		"cut short":                  {" Blocked", ""},
		"a time with a sign":         {"1795333205", "+1795333205"},
		"a time without end":         {"1795333205", "9223372036854775807"},
		"a time before all":          {"1795333205", "-9223372036854775808"},
		"a date of another day":      {"11/22/2026", "11/24/2026"},
		"no such date":               {"11/22/2026", "02/30/2026"},
		"a date with one digit":      {"07:40:05", "7:40:05"},
		"a date with a fraction":     {"07:40:05", "07:40:05.5"},
		"no host":                    {"scanner.example.net", ""},
		"a host that forges a field": {"scanner.example.net", "x/198.51.100.66 Port: 1 TCP Blocked"},
		"a host that is too long":    {"scanner.example.net", strings.Repeat("a", maxHost+1)},
		"no address":                 {"/203.0.113.7", "/scanner"},
		"a zone":                     {"/203.0.113.7", "/fe80::1%eth0"},
		"a mapped address":           {"/203.0.113.7", "/::ffff:203.0.113.7"},
		"port zero":                  {"101", "0"},
		"port too high":              {"101", "65536"},
		"another protocol":           {"TCP", "SCTP"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			record := strings.Replace(good, test.old, test.replacement, 1)
			if b, err := ParseBlocked(record); err == nil {
				t.Errorf("ParseBlocked(%q) = %+v, want an error", record, b)
			}
		})
	}
}

func FuzzAppendBlocked(f *testing.F) {
	for _, b := range goldenBlocked {
		f.Add(b.At.Unix(), int16(-330), b.Source.AsSlice(), b.Host, b.Port, b.Proto == detector.UDP)
	}
	f.Fuzz(func(t *testing.T, epoch int64, minutesEast int16, addr []byte, host string, port uint16, udp bool) {
		source, ok := netip.AddrFromSlice(addr)
		want := Blocked{Source: source.Unmap(), Host: host, Proto: detector.TCP, Port: port}
		want.At = time.Unix(epoch, 0).In(time.FixedZone("", int(minutesEast)%(24*60)*60))
		if year := want.At.Year(); !ok || port == 0 || year < 0 || year > 9999 {
			return
		}
		if udp {
			want.Proto = detector.UDP
		}

		record := string(want.Append(nil))
		got, err := ParseBlocked(record)
		if err != nil {
			t.Fatalf("ParseBlocked(%q): %v", record, err)
		}
		if again := string(got.Append(nil)); again != record {
			t.Fatalf("%q, parsed and formatted: %q", record, again)
		}
		// A name in another alphabet does not come back.
		got.Host, want.Host = "", ""
		if diff := cmp.Diff(want, got, cmp.Comparer(sameAddr)); diff != "" {
			t.Fatalf("ParseBlocked(%q) (-want +got)\n%s", record, diff)
		}
	})
}

func FuzzParseBlocked(f *testing.F) {
	for i := range goldenBlocked {
		f.Add(string(goldenBlocked[i].Append(nil)))
	}
	f.Fuzz(func(t *testing.T, record string) {
		b, err := ParseBlocked(record)
		if err != nil {
			return
		}
		if again := string(b.Append(nil)); again != record {
			t.Fatalf("ParseBlocked(%q) = %+v, formatted: %q", record, b, again)
		}
	})
}

func TestAppendBlockedAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, maxRecord)
	events := goldenEvents
	if n := testing.AllocsPerRun(100, func() {
		for i := range events {
			buf = AppendBlocked(buf[:0], &events[i], time.Local)
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d records, want none", n, len(events))
	}
}

func BenchmarkAppendBlocked(b *testing.B) {
	ev := probe(v4, detector.TCP, 11, detector.TechniqueSYN)
	buf := make([]byte, 0, maxRecord)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendBlocked(buf[:0], &ev, time.Local)
	}
}

package logline

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

// banned is a probe that led to acts, of which one was enough.
func banned(ev detector.Event, acts ...detector.Act) detector.Event {
	ev.NoBlock, ev.Blocked, ev.Acts = detector.False, detector.True, acts
	return ev
}

// notBanned is a probe that led to acts in vain.
func notBanned(ev detector.Event, acts ...detector.Act) detector.Event {
	ev.NoBlock, ev.Blocked, ev.Acts = detector.False, detector.False, acts
	return ev
}

var (
	syn     = probe(v4, detector.TCP, 11, detector.TechniqueSYN)
	connect = probe(v4, detector.TCP, 11, detector.TechniqueConnect)
	udp     = probe(v4, detector.UDP, 7, detector.TechniqueUDP)
	named   = with(syn, func(ev *detector.Event) { ev.Host = "scanner.example.net" })

	route     = detector.Act{Kind: detector.ActRoute, Text: "/bin/true route 203.0.113.7 11 stealth"}
	wrappers  = detector.Act{Kind: detector.ActHostsDeny, Text: "ALL: 203.0.113.7 : DENY"}
	command   = detector.Act{Kind: detector.ActCommand, Text: "/bin/true cmd 203.0.113.7 11"}
	present   = detector.Act{Kind: detector.ActHostsDeny, Text: "ALL: 203.0.113.7 : DENY", Present: true}
	failed    = detector.Act{Kind: detector.ActRoute, Text: "false", Err: errors.New("command failed: exit status 1")}
	targets   = detector.Act{Kind: detector.ActRoute, Text: "x", Err: fmt.Errorf("route: %w", detector.ErrNoTarget)}
	targetsHD = detector.Act{Kind: detector.ActHostsDeny, Text: "x", Err: detector.ErrNoTarget}
)

// goldenOutcomes are events of every kind, by what happened.
var goldenOutcomes = []struct {
	name string
	ev   detector.Event
}{
	{"reported", syn},
	{"reported, named", named},
	{"reported, UDP", udp},
	{"reported, IPv6", probe(v6, detector.TCP, 11, detector.TechniqueSYN)},
	{"reported, link-local", probe(netip.MustParseAddr("fe80::1%eth0"), detector.TCP, 1, detector.TechniqueConnect)},
	{"reported, IPv4-mapped", probe(netip.MustParseAddr("::ffff:203.0.113.7"), detector.TCP, 1, detector.TechniqueConnect)},
	{"reported, IP options", with(syn, func(ev *detector.Event) { ev.Probe.IPOptions = detector.True })},
	{"reported, flags that PortSentry 1.2 does not know", with(probe(v4, detector.TCP, 9, detector.TechniqueOddFlags), func(ev *detector.Event) {
		ev.Probe.Header.Flags = detector.ECE | detector.CWR
	})},
	{"reported, one of them with another", with(probe(v4, detector.TCP, 9, detector.TechniqueOddFlags), func(ev *detector.Event) {
		ev.Probe.Header.Flags = detector.PSH | detector.ECE
	})},
	{"ignored", with(syn, func(ev *detector.Event) {
		ev.Action, ev.Ignored = detector.ScanIgnored, detector.True
		ev.Triggered, ev.NoBlock, ev.Blocked = detector.Unset, detector.Unset, detector.Unset
	})},
	{"below the trigger", with(syn, func(ev *detector.Event) {
		ev.Triggered, ev.NoBlock, ev.Blocked = detector.False, detector.Unset, detector.Unset
	})},
	{"own address", with(syn, func(ev *detector.Event) { ev.Action, ev.Ignored = detector.ScanIgnored, detector.True })},
	{"banned, all means", banned(syn, wrappers, route, command)},
	{"banned, one of the means", banned(named, present, failed)},
	{"banned, without acts", banned(syn)},
	{"banned before", with(banned(named), func(ev *detector.Event) { ev.Held = true })},
	{"banned before, trap", with(banned(connect), func(ev *detector.Event) { ev.Held = true })},
	{"not banned, SYN", notBanned(named, failed)},
	{"not banned, UDP", notBanned(udp, failed)},
	{"not banned, trap", notBanned(connect, failed)},
	{"not banned, no target", notBanned(syn, targets, targetsHD)},
	{"never to be banned", with(notBanned(syn), func(ev *detector.Event) { ev.Reason = "it is a gateway" })},
	{"a long command with a line break", banned(syn, detector.Act{Kind: detector.ActCommand, Text: "a\n\x1bb" + strings.Repeat("x", 2000)})},
	{"a service", detector.Event{At: at, Action: detector.ServiceReached, Probe: syn.Probe}},
	{"a peer that vanished", detector.Event{
		At: at, Action: detector.AcceptFailed, Probe: detector.Probe{Target: netip.AddrPortFrom(target, 11)},
		Reason: "accept failed 103: Software caused connection abort",
	}},
	{"the daemon itself", detector.Event{At: at, Action: detector.DaemonStarted}},
}

// The golden file is the contract: every line that either generation has.
func TestAppendLinesGolden(t *testing.T) {
	forms := []struct {
		name   string
		append func([]byte, *detector.Event) []byte
	}{
		{"PortSentry 2", PortSentry2{}.AppendLines},
		{"PortSentry 2 -v -d", PortSentry2{Verbose: true, Debug: true, IgnoreFile: "./portsentry.ignore"}.AppendLines},
		{"PortSentry 1.2", PortSentry1{}.AppendLines},
		{"PortSentry 1.2 advanced", PortSentry1{Advanced: true}.AppendLines},
	}
	var b strings.Builder
	for _, outcome := range goldenOutcomes {
		fmt.Fprintf(&b, "== %s\n", outcome.name)
		before := ""
		for _, form := range forms {
			lines := string(form.append(nil, &outcome.ev))
			if lines != before {
				fmt.Fprintf(&b, "-- %s\n%s", form.name, lines)
			}
			before = lines
		}
	}
	checkGolden(t, "lines.golden", b.String())
}

func TestLinesAreCut(t *testing.T) {
	for length, want := range map[int]string{
		1023: strings.Repeat("x", 1023),
		1024: strings.Repeat("x", 1020) + "...",
		5000: strings.Repeat("x", 1020) + "...",
	} {
		got := string(AppendLine(nil, Error, strings.Repeat("x", length)))
		if diff := cmp.Diff("3"+want+"\n", got); diff != "" {
			t.Errorf("%d bytes (-want +got)\n%s", length, diff)
		}
	}
}

// Whatever a name server answers and an administrator configures, each line is
// one line, has a severity, and is not longer than readers have room for.
func FuzzAppendLines(f *testing.F) {
	f.Add("scanner.example.net", "iptables -I INPUT -s 203.0.113.7 -j DROP", "exit status 1", true)
	f.Add("x] blocked: [true]\nScan from: [198.51.100.66]", "a\nb", "c\x00", false)
	f.Fuzz(func(t *testing.T, host, command, fault string, works bool) {
		act := detector.Act{Kind: detector.ActCommand, Text: command}
		if !works {
			act.Err = errors.New(fault)
		}
		ev := with(notBanned(syn, act), func(ev *detector.Event) {
			ev.Host = host
			ev.Blocked = detector.TriOf(works)
		})
		for _, lines := range []string{
			string(PortSentry2{Verbose: true, Debug: true}.AppendLines(nil, &ev)),
			string(PortSentry1{}.AppendLines(nil, &ev)),
		} {
			for line := range strings.Lines(lines) {
				text := strings.TrimSuffix(line, "\n")
				if !strings.HasSuffix(line, "\n") || strings.Trim(text[:1], "3567") != "" || len(text)-1 > maxLine {
					t.Fatalf("bad line %q of %q", line, lines)
				}
			}
			if want := 2 + strings.Count(lines, "target dispose") + strings.Count(lines, "Could not block"); strings.Count(lines, "\n") != want {
				t.Fatalf("%d lines, want %d: %q", strings.Count(lines, "\n"), want, lines)
			}
		}
	})
}

func TestAppendLinesAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 4*maxRecord)
	for name, lines := range map[string]func([]byte, *detector.Event) []byte{
		"PortSentry 2":   PortSentry2{}.AppendLines,
		"PortSentry 1.2": PortSentry1{}.AppendLines,
	} {
		events := slices.Concat(goldenEvents, []detector.Event{named})
		if n := testing.AllocsPerRun(100, func() {
			for i := range events {
				buf = lines(buf[:0], &events[i])
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations for %d events, want none", name, n, len(events))
		}
	}
}

func BenchmarkAppendLines(b *testing.B) {
	for name, lines := range map[string]func([]byte, *detector.Event) []byte{
		"PortSentry2": PortSentry2{}.AppendLines,
		"PortSentry1": PortSentry1{}.AppendLines,
	} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 0, 4*maxRecord)
			b.ReportAllocs()
			for b.Loop() {
				buf = lines(buf[:0], &syn)
			}
		})
	}
}

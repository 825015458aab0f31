package portsentrylog

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/logfile"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/parsers/logline"
)

var at = time.Date(2026, 11, 2, 7, 44, 33, 659_000_000, time.UTC)

// probe returns the event of a SYN to a port; its sequence number is the port.
func probe(port uint16) detector.Event {
	return detector.Event{
		At:       at,
		Sequence: uint64(port),
		Probe: detector.Probe{
			Source:    netip.MustParseAddrPort("203.0.113.7:51234"),
			Target:    netip.AddrPortFrom(netip.MustParseAddr("198.51.100.9"), port),
			Proto:     detector.TCP,
			Technique: detector.TechniqueSYN,
			IPOptions: detector.False,
		},
		Ignored:   detector.False,
		Triggered: detector.True,
		NoBlock:   detector.True,
		Blocked:   detector.False,
	}
}

func probes(ports ...uint16) []detector.Event {
	var events []detector.Event
	for _, port := range ports {
		events = append(events, probe(port))
	}
	return events
}

const lineFormat = "Scan from: [203.0.113.7] (203.0.113.7) protocol: [TCP] port: [PORT] type: [TCP SYN/Normal scan] IP opts: [not set] ignored: [false] triggered: [true] noblock: [true] blocked: [false]"

func line(port string) string { return strings.Replace(lineFormat, "PORT", port, 1) }

var started = detector.Event{Sequence: 99, Action: detector.DaemonStarted}

func TestLines(t *testing.T) {
	var got strings.Builder
	stream := logfile.NewStream(&got)
	out := NewLines(stream, stream, logline.PortSentry2{}.AppendLines)
	for _, events := range [][]detector.Event{
		append(probes(1), started, probe(7)),
		{started},
		{},
		probes(9),
	} {
		if err := out.Deliver(t.Context(), events); err != nil {
			t.Fatal(err)
		}
	}
	if want := line("1") + "\n" + line("7") + "\n" + line("9") + "\n"; got.String() != want {
		t.Errorf("got %q, want %q", &got, want)
	}
}

// What went wrong goes to standard error, as PortSentry 2 does it.
func TestFaultsGoElsewhere(t *testing.T) {
	ev := outcomes["the ban failed"].probe(1)
	var usual, faults strings.Builder
	out := NewLines(logfile.NewStream(&usual), logfile.NewStream(&faults), logline.PortSentry2{}.AppendLines)
	if err := out.Deliver(t.Context(), []detector.Event{ev, probe(7)}); err != nil {
		t.Fatal(err)
	}
	const want = "attackalert: Error during target dispose 203.0.113.7/203.0.113.7!\n"
	if faults.String() != want {
		t.Errorf("faults are %q, want %q", &faults, want)
	}
	if want := strings.Replace(line("1"), "noblock: [true]", "noblock: [false]", 1) + "\n" + line("7") + "\n"; usual.String() != want {
		t.Errorf("lines are %q, want %q", &usual, want)
	}
}

// A closed standard error stops nothing.
func TestFaultsThatNobodyTakes(t *testing.T) {
	r, w := io.Pipe()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var usual strings.Builder
	out := NewLines(logfile.NewStream(&usual), logfile.NewStream(w), logline.PortSentry2{}.AppendLines)
	if err := out.Deliver(t.Context(), []detector.Event{outcomes["the ban failed"].probe(1)}); err != nil {
		t.Errorf("Deliver = %v, want nil", err)
	}
	if n := strings.Count(usual.String(), "\n"); n != 1 {
		t.Errorf("%d lines, want 1: %q", n, &usual)
	}
}

func TestHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	file := logfile.New(path, 0o644)
	out := NewHistory(file, time.FixedZone("", 3600))
	if err := out.Deliver(t.Context(), probes(1, 7)); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const stamp = "2026-11-02T08:44:33.659+0100 "
	if want := stamp + line("1") + "\n" + stamp + line("7") + "\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An outcome is what was decided about a probe, and whether PortSentry 1.2 has a
// record of it.
type outcome struct {
	ignored, triggered, noBlock, blocked detector.Tri
	recorded                             bool
}

var outcomes = map[string]outcome{
	"bans are off":          {detector.False, detector.True, detector.True, detector.False, true},
	"banned":                {detector.False, detector.True, detector.False, detector.True, true},
	"the ban failed":        {detector.False, detector.True, detector.False, detector.False, false},
	"ignored":               {ignored: detector.True},
	"below the trigger":     {ignored: detector.False, triggered: detector.False},
	"from this host itself": {detector.True, detector.True, detector.True, detector.False, false},
}

// probe returns the event of a SYN to a port with this outcome.
func (o outcome) probe(port uint16) detector.Event {
	ev := probe(port)
	ev.Ignored, ev.Triggered, ev.NoBlock, ev.Blocked = o.ignored, o.triggered, o.noBlock, o.blocked
	return ev
}

// Fail2Ban bans on one record, so there is none for a probe that leads to
// nothing.
func TestHistory1(t *testing.T) {
	const record = "1793605473 - 11/02/2026 08:44:33 Host: 203.0.113.7/203.0.113.7 Port: 1 TCP Blocked\n"
	for name, test := range outcomes {
		t.Run(name, func(t *testing.T) {
			want := ""
			if test.recorded {
				want = record
			}
			var got strings.Builder
			out := NewHistory1(logfile.NewStream(&got), time.FixedZone("", 3600))
			held := test.probe(7)
			held.Held = true
			if err := out.Deliver(t.Context(), []detector.Event{started, test.probe(1), held, started}); err != nil {
				t.Fatal(err)
			}
			if got.String() != want {
				t.Errorf("got %q, want %q", &got, want)
			}
		})
	}
}

func TestLinesReturnTheTargetsError(t *testing.T) {
	r, w := io.Pipe()
	broken := errors.New("broken")
	if err := r.CloseWithError(broken); err != nil {
		t.Fatal(err)
	}
	stream := logfile.NewStream(w)
	if err := NewLines(stream, stream, logline.PortSentry2{}.AppendLines).Deliver(t.Context(), probes(1)); !errors.Is(err, broken) {
		t.Errorf("Deliver = %v, want %v", err, broken)
	}
}

func TestDeliverAllocatesNothing(t *testing.T) {
	events := probes(1, 7, 9, 11)
	stream := logfile.NewStream(io.Discard)
	for name, out := range map[string]outputs.Output{
		"lines":       NewLines(stream, stream, logline.PortSentry2{}.AppendLines),
		"lines 1.2":   NewLines(stream, stream, logline.PortSentry1{}.AppendLines),
		"history":     NewHistory(stream, time.Local),
		"history 1.2": NewHistory1(stream, time.Local),
	} {
		if n := testing.AllocsPerRun(100, func() { _ = out.Deliver(t.Context(), events) }); n != 0 {
			t.Errorf("%s: %v allocations a batch, want none", name, n)
		}
	}
}

// BenchmarkHistory writes batches as the dispatcher does under a flood, to a
// real file; it reports the cost of one event.
func BenchmarkHistory(b *testing.B) {
	const batch = 256
	path := filepath.Join(b.TempDir(), "history")
	file := logfile.New(path, 0o644)
	defer file.Close()
	out := NewHistory(file, time.Local)
	var events []detector.Event
	for port := range uint16(batch) {
		events = append(events, probe(port))
	}
	b.ReportAllocs()
	n := 0
	for ; b.Loop(); n++ {
		if err := out.Deliver(b.Context(), events); err != nil {
			b.Fatal(err)
		}
		if n%1000 == 999 { // 54 MB
			if err := os.Truncate(path, 0); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*batch), "ns/event")
}

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
	out := NewLines(logfile.NewStream(&got), PortSentry2)
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

// PortSentry 1.2 reports in several lines, and says nothing of a probe that leads
// to nothing.
func TestLinesOfPortSentry1(t *testing.T) {
	const (
		alert    = "attackalert: TCP SYN/Normal scan from host: 203.0.113.7/203.0.113.7 to TCP port: 1\n"
		ignoring = "attackalert: Ignoring TCP response per configuration file setting.\n"
	)
	for name, test := range outcomes {
		t.Run(name, func(t *testing.T) {
			want := ""
			if test.recorded {
				want = alert
			}
			if test.recorded && test.noBlock == detector.True {
				want += ignoring
			}
			var got strings.Builder
			out := NewLines(logfile.NewStream(&got), PortSentry1)
			if err := out.Deliver(t.Context(), []detector.Event{started, test.probe(1), started}); err != nil {
				t.Fatal(err)
			}
			if got.String() != want {
				t.Errorf("got %q, want %q", &got, want)
			}
		})
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
	"the ban failed":        {detector.False, detector.True, detector.False, detector.False, true},
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
			if err := out.Deliver(t.Context(), []detector.Event{started, test.probe(1), started}); err != nil {
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
	if err := NewLines(logfile.NewStream(w), PortSentry2).Deliver(t.Context(), probes(1)); !errors.Is(err, broken) {
		t.Errorf("Deliver = %v, want %v", err, broken)
	}
}

func TestDeliverAllocatesNothing(t *testing.T) {
	events := probes(1, 7, 9, 11)
	for name, out := range map[string]*Lines{
		"lines":       NewLines(logfile.NewStream(io.Discard), PortSentry2),
		"lines 1.2":   NewLines(logfile.NewStream(io.Discard), PortSentry1),
		"history":     NewHistory(logfile.NewStream(io.Discard), time.Local),
		"history 1.2": NewHistory1(logfile.NewStream(io.Discard), time.Local),
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

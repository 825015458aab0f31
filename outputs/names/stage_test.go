package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

// A nameService answers with what it was told, when it was told to.
type nameService struct {
	answers map[string]answer
	other   answer // to every other question

	mu    sync.Mutex
	asked []string
}

type answer struct {
	names []string
	err   error
	after time.Duration
}

// lame is a server that never answers.
var lame = answer{names: []string{"never.example."}, after: time.Hour}

// lookupTime is how long a worker is busy with it, unless told otherwise.
const lookupTime = DefaultWithin + lateLimit

var errNotFound = &net.DNSError{Err: "no such host", IsNotFound: true}

func (n *nameService) lookup(ctx context.Context, addr string) ([]string, error) {
	n.mu.Lock()
	n.asked = append(n.asked, addr)
	n.mu.Unlock()
	a, ok := n.answers[addr]
	if !ok {
		a = n.other
	}
	select {
	case <-time.After(a.after): // of the bubble's clock
		return a.names, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *nameService) questions() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.asked)
}

// A delivery is what came of an event, and when.
type delivery struct {
	Sequence uint64
	Host     string
	At       time.Duration // since the stage was started
}

// A running stage.
type running struct {
	*Stage
	cancel context.CancelFunc // ends Run's context
	done   chan struct{}      // closed when Run has returned

	mu    sync.Mutex
	began time.Time
	got   []delivery
}

func start(t *testing.T, o Options) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{Stage: New(o), cancel: cancel, done: make(chan struct{}), began: time.Now()}
	go func() {
		defer close(r.done)
		r.Run(ctx, r.deliver)
	}()
	return r
}

func (r *running) deliver(events []detector.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range events {
		r.got = append(r.got, delivery{events[i].Sequence, events[i].Host, time.Since(r.began)})
	}
}

func (r *running) delivered() []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *running) stop() {
	r.cancel()
	r.Close()
	<-r.done
}

// probe is the event of a probe by source.
func probe(sequence uint64, source string) detector.Event {
	return probeBy(sequence, netip.MustParseAddr(source))
}

func probeBy(sequence uint64, source netip.Addr) detector.Event {
	return detector.Event{
		Sequence: sequence,
		Action:   detector.ScanDetected,
		Probe:    detector.Probe{Source: netip.AddrPortFrom(source, 40000)},
	}
}

// nth is one of many sources.
func nth(n int) netip.Addr {
	a := netip.MustParseAddr("2001:db8::").As16()
	a[12], a[13], a[14], a[15] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	return netip.AddrFrom16(a)
}

func TestStageWaitsForANameAndNoLonger(t *testing.T) {
	tests := map[string]struct {
		answer answer
		within time.Duration
		want   delivery
		stats  Stats
	}{
		"answer at once":           {answer{names: []string{"a.example."}}, 0, delivery{1, "a.example", 0}, Stats{Lookups: 1}},
		"answer in time":           {answer{names: []string{"a.example."}, after: 999 * time.Millisecond}, 0, delivery{1, "a.example", 999 * time.Millisecond}, Stats{Lookups: 1}},
		"answer too late":          {answer{names: []string{"a.example."}, after: 1001 * time.Millisecond}, 0, delivery{1, "", time.Second}, Stats{Lookups: 1, Late: 1}},
		"no answer":                {lame, 0, delivery{1, "", time.Second}, Stats{Lookups: 1, Failed: 1, Late: 1}},
		"longer wait":              {lame, 20 * time.Second, delivery{1, "", 20 * time.Second}, Stats{Lookups: 1, Failed: 1, Late: 1}},
		"in time of that":          {answer{names: []string{"a.example."}, after: 19 * time.Second}, 20 * time.Second, delivery{1, "a.example", 19 * time.Second}, Stats{Lookups: 1}},
		"no such host":             {answer{err: errNotFound, after: 10 * time.Millisecond}, 0, delivery{1, "", 10 * time.Millisecond}, Stats{Lookups: 1}},
		"no record":                {answer{}, 0, delivery{1, "", 0}, Stats{Lookups: 1}},
		"no server":                {answer{err: errors.New("connection refused")}, 0, delivery{1, "", 0}, Stats{Lookups: 1, Failed: 1}},
		"unsafe name":              {answer{names: []string{"198.51.100.7."}}, 0, delivery{1, "", 0}, Stats{Lookups: 1, Refused: 1}},
		"names beside an error":    {answer{names: []string{"a.example."}, err: errors.New("malformed record")}, 0, delivery{1, "a.example", 0}, Stats{Lookups: 1}},
		"forged fields and a host": {answer{names: []string{"x] blocked: [true.", "a.example."}}, 0, delivery{1, "a.example", 0}, Stats{Lookups: 1}},
		"thousands of names": {
			answer{names: append(slices.Repeat([]string{strings.Repeat("x.", 1<<15)}, 5000), "a.example.")},
			0,
			delivery{1, "a.example", 0},
			Stats{Lookups: 1},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := &nameService{other: test.answer}
				s := start(t, Options{Within: test.within, Lookup: service.lookup})
				defer s.stop()
				s.Push([]detector.Event{probe(1, "203.0.113.7")})
				time.Sleep(time.Minute) // of the bubble's clock
				if diff := cmp.Diff([]delivery{test.want}, s.delivered()); diff != "" {
					t.Errorf("delivered (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(test.stats, s.Stats()); diff != "" {
					t.Errorf("counted (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestStageAsksForOneSourceOnceHoweverManyEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{other: lame}
		s := start(t, Options{Lookup: service.lookup})
		defer s.stop()
		var events []detector.Event
		var want []delivery
		for n := range uint64(1000) {
			events = append(events, probe(n+1, "203.0.113.7"))
			want = append(want, delivery{n + 1, "", time.Second})
		}
		s.Push(events)
		time.Sleep(time.Minute)
		if diff := cmp.Diff(want, s.delivered()); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
		if got := service.questions(); len(got) != 1 {
			t.Errorf("asked %d times, want once", len(got))
		}
	})
}

func TestStageDelaysNoEventForLongerBecauseOfThoseBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{
			other:   lame,
			answers: map[string]answer{"203.0.113.7": {names: []string{"a.example."}, after: 100 * time.Millisecond}},
		}
		s := start(t, Options{Lookup: service.lookup})
		defer s.stop()
		var want []delivery
		for n := range uint64(10) {
			pushed := time.Since(s.began)
			s.Push([]detector.Event{probeBy(n+1, nth(int(n)))})
			want = append(want, delivery{n + 1, "", pushed + time.Second})
			time.Sleep(300 * time.Millisecond)
		}
		// Its own name comes before the event in front of it may pass.
		s.Push([]detector.Event{probe(11, "203.0.113.7"), probe(12, "203.0.113.7")})
		last := want[9].At
		want = append(want, delivery{11, "a.example", last}, delivery{12, "a.example", last})
		time.Sleep(time.Minute)
		if diff := cmp.Diff(want, s.delivered()); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
	})
}

func TestStageLooksUpWhoIsActedUponAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{other: answer{names: []string{"a.example."}, after: time.Millisecond}}
		s := start(t, Options{Lookup: service.lookup})
		defer s.stop()
		ignored := probe(1, "192.0.2.1")
		ignored.Action = detector.ScanIgnored
		started := detector.Event{Sequence: 2, Action: detector.DaemonStarted}
		lost := detector.Event{Sequence: 4, Action: detector.PacketsLost}
		s.Push([]detector.Event{ignored, started, probe(3, "203.0.113.7"), lost})
		synctest.Wait()
		want := []delivery{{1, "", 0}, {2, "", 0}} // they wait for nobody behind them
		if diff := cmp.Diff(want, s.delivered()); diff != "" {
			t.Errorf("delivered at once (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute)
		want = append(want, delivery{3, "a.example", time.Millisecond}, delivery{4, "", time.Millisecond})
		if diff := cmp.Diff(want, s.delivered()); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"203.0.113.7"}, service.questions()); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
	})
}

func TestSourceIsAskedForWithoutItsZoneAndOnce(t *testing.T) {
	tests := map[string]struct {
		sources []string
		want    []string
	}{
		"link-local on two interfaces": {[]string{"fe80::1%eth0", "fe80::1%eth1"}, []string{"fe80::1"}},
		"mapped IPv4":                  {[]string{"::ffff:203.0.113.7", "203.0.113.7"}, []string{"203.0.113.7"}},
		"loopback":                     {[]string{"127.0.0.1"}, []string{"127.0.0.1"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := &nameService{other: lame}
				s := start(t, Options{Lookup: service.lookup})
				defer s.stop()
				for _, source := range test.sources {
					s.Push([]detector.Event{probe(1, source)})
				}
				synctest.Wait()
				if diff := cmp.Diff(test.want, service.questions()); diff != "" {
					t.Errorf("asked (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestAnswersAreRememberedForTheirTime(t *testing.T) {
	found := answer{names: []string{"a.example."}}
	tests := map[string]struct {
		answer answer
		again  time.Duration // after the first event
		want   string
		asked  int
	}{
		"name":                      {found, keepName - time.Second, "a.example", 1},
		"name, too old":             {found, keepName, "a.example", 2},
		"no name":                   {answer{err: errNotFound}, keepNone - time.Second, "", 1},
		"no name, too old":          {answer{err: errNotFound}, keepNone, "", 2},
		"no answer":                 {lame, lookupTime + keepNone - time.Second, "", 1},
		"no answer, too old":        {lame, lookupTime + keepNone, "", 2},
		"answer too late for first": {answer{names: []string{"a.example."}, after: 4 * time.Second}, 4 * time.Second, "a.example", 1},
		"in the meantime":           {answer{names: []string{"a.example."}, after: 4 * time.Second}, 3500 * time.Millisecond, "a.example", 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := &nameService{other: test.answer}
				s := start(t, Options{Lookup: service.lookup})
				defer s.stop()
				s.Push([]detector.Event{probe(1, "203.0.113.7")})
				time.Sleep(test.again)
				synctest.Wait()
				s.Push([]detector.Event{probe(2, "203.0.113.7")})
				time.Sleep(time.Minute)
				if got := s.delivered(); len(got) != 2 || got[1].Host != test.want {
					t.Errorf("delivered %v, want the second with host %q", got, test.want)
				}
				if got := service.questions(); len(got) != test.asked {
					t.Errorf("asked %d times, want %d", len(got), test.asked)
				}
			})
		})
	}
}

func TestFloodOfSourcesPassesInBoundedMemory(t *testing.T) {
	const sources = 100_000
	tests := map[string]answer{
		"servers that answer": {names: []string{"a.example."}},
		"lame servers":        lame,
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := &nameService{other: answer}
				s := start(t, Options{Lookup: service.lookup})
				defer s.stop()
				for n := 0; n < sources; n += batchLimit {
					var events []detector.Event
					for i := n; i < min(n+batchLimit, sources); i++ {
						events = append(events, probeBy(uint64(i+1), nth(i)))
					}
					s.Push(events)
				}
				if took := time.Since(s.began); took != 0 {
					t.Errorf("pushing took %v, want no waiting", took)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				got := s.delivered()
				if len(got) != sources {
					t.Fatalf("delivered %d events within a second, want %d", len(got), sources)
				}
				for i, d := range got {
					if d.Sequence != uint64(i+1) {
						t.Fatalf("event %d came in place %d", d.Sequence, i+1)
					}
				}
				if asked := len(service.questions()); asked > maxPerSecond {
					t.Errorf("asked %d times in a second, want at most %d", asked, maxPerSecond)
				}
				if st := s.Stats(); st.Unasked != sources-maxPerSecond {
					t.Errorf("counted %d sources as not asked, want %d", st.Unasked, sources-maxPerSecond)
				}
			})
		})
	}
}

func TestFullStageHurriesTheOldestOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{other: lame}
		s := start(t, Options{Lookup: service.lookup})
		defer s.stop()
		// One is at Run, and the batch that it delivered first is not in the queue.
		const extra = 10
		for n := range uint64(queueLimit + 1 + extra) {
			s.Push([]detector.Event{probe(n+1, "203.0.113.7")})
		}
		synctest.Wait()
		var want []delivery
		for n := range uint64(extra) {
			want = append(want, delivery{n + 1, "", 0})
		}
		if diff := cmp.Diff(want, s.delivered()); diff != "" {
			t.Errorf("delivered before their time (-want +got):\n%s", diff)
		}
		if st := s.Stats(); st.Hurried != extra || st.Late != extra {
			t.Errorf("counted %d as hurried and %d as late, want %d of each", st.Hurried, st.Late, extra)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := len(s.delivered()); got != queueLimit+1+extra {
			t.Errorf("delivered %d events after a second, want all %d", got, queueLimit+1+extra)
		}
	})
}

func TestLookupsThatNobodyWaitsForAreNotMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{
			other:   lame,
			answers: map[string]answer{"203.0.113.7": {names: []string{"a.example."}}},
		}
		s := start(t, Options{Lookup: service.lookup})
		defer s.stop()
		const waiting = 30
		for n := range maxLookups + waiting {
			s.Push([]detector.Event{probeBy(uint64(n+1), nth(n))})
		}
		time.Sleep(lookupTime) // every worker is free again
		synctest.Wait()
		s.Push([]detector.Event{probe(1000, "203.0.113.7")})
		synctest.Wait()
		got := s.delivered()
		want := delivery{1000, "a.example", lookupTime}
		if len(got) == 0 || got[len(got)-1] != want {
			t.Errorf("of %d events, delivered last %v, want %v", len(got), got[max(len(got)-1, 0):], want)
		}
		if asked := len(service.questions()); asked != maxLookups+1 {
			t.Errorf("asked %d times, want %d", asked, maxLookups+1)
		}
		// What was not asked may be asked again at once.
		s.Push([]detector.Event{probeBy(1001, nth(maxLookups))})
		synctest.Wait()
		if asked := service.questions(); asked[len(asked)-1] != nth(maxLookups).String() {
			t.Errorf("asked last for %s, want %s", asked[len(asked)-1], nth(maxLookups))
		}
	})
}

func TestLookupsThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{other: lame}
		s := start(t, Options{Lookup: service.lookup, Within: time.Minute})
		defer s.stop()
		const seconds = 10
		for second := range seconds {
			for n := range maxPerSecond {
				s.Push([]detector.Event{probeBy(1, nth(second*maxPerSecond+n))})
				synctest.Wait()
			}
			time.Sleep(time.Second)
		}
		if got, want := s.Stats().Unasked, uint64(seconds*maxPerSecond-maxLookups-maxWaiting); got != want {
			t.Errorf("counted %d sources as not asked, want %d", got, want)
		}
	})
}

func TestForgettingBeginsWithWhoHasNoName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const named = 50
		service := &nameService{other: answer{err: errNotFound}, answers: map[string]answer{}}
		for n := range named {
			service.answers[nth(n).String()] = answer{names: []string{"a.example."}}
		}
		s := start(t, Options{Lookup: service.lookup})
		defer s.stop()
		for n := range maxRemembered + 2000 {
			s.Push([]detector.Event{probeBy(1, nth(n))})
			synctest.Wait()
			if n%maxPerSecond == maxPerSecond-1 {
				time.Sleep(time.Second)
			}
		}
		if got := len(s.resolver.remembered); got != maxRemembered {
			t.Errorf("remembers %d sources, want %d", got, maxRemembered)
		}
		asked := len(service.questions())
		for n := range named {
			s.Push([]detector.Event{probeBy(1, nth(n))})
		}
		synctest.Wait()
		if got := len(service.questions()) - asked; got != 0 {
			t.Errorf("a flood of nameless sources displaced %d of %d names", got, named)
		}
	})
}

func TestStopDeliversWhatWaitsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{
			other:   lame,
			answers: map[string]answer{"203.0.113.7": {names: []string{"a.example."}}},
		}
		s := start(t, Options{Within: time.Minute, Lookup: service.lookup})
		s.Push([]detector.Event{probeBy(1, nth(1)), probe(2, "203.0.113.7"), probeBy(3, nth(2))})
		synctest.Wait()
		s.cancel()
		synctest.Wait()
		// What comes while others drain takes a name that is known, and asks for none.
		s.Push([]detector.Event{probe(4, "203.0.113.7"), probeBy(5, nth(3))})
		s.Close()
		<-s.done
		want := []delivery{{1, "", 0}, {2, "a.example", 0}, {3, "", 0}, {4, "a.example", 0}, {5, "", 0}}
		if diff := cmp.Diff(want, s.delivered()); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
	})
}

func TestClosedStageLetsTheRestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &nameService{other: answer{names: []string{"a.example."}, after: 400 * time.Millisecond}}
		s := start(t, Options{Lookup: service.lookup})
		defer s.cancel()
		s.Push([]detector.Event{probe(1, "203.0.113.7")})
		s.Close()
		<-s.done
		want := []delivery{{1, "a.example", 400 * time.Millisecond}}
		if diff := cmp.Diff(want, s.delivered()); diff != "" {
			t.Errorf("delivered (-want +got):\n%s", diff)
		}
	})
}

// batches are what a stage has to carry without allocating.
func batches() map[string][]detector.Event {
	daemon, ignored, known := make([]detector.Event, batchLimit), make([]detector.Event, batchLimit), make([]detector.Event, batchLimit)
	for i := range batchLimit {
		daemon[i] = detector.Event{Action: detector.PacketsLost}
		known[i] = probe(uint64(i), "203.0.113.7")
		ignored[i] = known[i]
		ignored[i].Action = detector.ScanIgnored
	}
	return map[string][]detector.Event{"the daemon's": daemon, "of ignored sources": ignored, "of a known source": known}
}

// carry starts a stage that knows 203.0.113.7, and returns what pushes events
// through it and returns when all are delivered.
func carry(tb testing.TB) func(events []detector.Event) {
	tb.Helper()
	service := &nameService{other: answer{names: []string{"a.example."}}}
	s := New(Options{Lookup: service.lookup})
	delivered := make(chan int, batchLimit)
	var running sync.WaitGroup
	running.Go(func() { s.Run(tb.Context(), func(events []detector.Event) { delivered <- len(events) }) })
	tb.Cleanup(func() {
		s.Close()
		running.Wait()
	})
	push := func(events []detector.Event) {
		s.Push(events)
		for n := 0; n < len(events); {
			n += <-delivered
		}
	}
	push([]detector.Event{probe(1, "203.0.113.7")})
	return push
}

func TestEventsThatNeedNoLookupAllocateNothing(t *testing.T) {
	for name, events := range batches() {
		t.Run(name, func(t *testing.T) {
			push := carry(t)
			if got := testing.AllocsPerRun(100, func() { push(events) }); got != 0 {
				t.Errorf("%d events allocate %v times, want never", len(events), got)
			}
		})
	}
}

func BenchmarkStage(b *testing.B) {
	for name, events := range batches() {
		b.Run(fmt.Sprintf("%d events %s", len(events), name), func(b *testing.B) {
			push := carry(b)
			b.ReportAllocs()
			for b.Loop() {
				push(events)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
		})
	}
}

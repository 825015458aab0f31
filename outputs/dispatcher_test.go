package outputs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/names"
)

// fakeOutput keeps the sequence numbers it took. While broken it takes
// nothing; while stuck it answers only when its context ends.
type fakeOutput struct {
	mu            sync.Mutex
	took          []uint64
	blocked       []detector.Tri
	broken, stuck bool
	slow          bool // takes a second to fail
}

func (f *fakeOutput) Deliver(ctx context.Context, events []detector.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	if f.slow {
		time.Sleep(time.Second) // of the bubble's clock
	}
	if f.broken {
		return errors.New("no space left")
	}
	for _, ev := range events {
		f.took = append(f.took, ev.Sequence)
		f.blocked = append(f.blocked, ev.Blocked)
	}
	return nil
}

func (f *fakeOutput) set(broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = broken
}

func (f *fakeOutput) taken() []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.took)
}

type fakeBans struct {
	err error
	got []detector.Ban
}

func (f *fakeBans) ChangeBans(ctx context.Context, bans, _ []detector.Ban) ([]Result, error) {
	f.got = append(f.got, bans...)
	if errors.Is(f.err, context.DeadlineExceeded) {
		<-ctx.Done() // never answers in time
		return nil, ctx.Err()
	}
	return nil, f.err
}

func quiet() *logrus.Entry {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return logrus.NewEntry(log)
}

var report = detector.Decision{Report: true}

func sequences(first, last uint64) []uint64 {
	var s []uint64
	for n := first; n <= last; n++ {
		s = append(s, n)
	}
	return s
}

// start runs d until the returned function is called, which waits for its end.
func start(t *testing.T, d *Dispatcher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { d.Run(ctx); close(done) }()
	return func() { cancel(); <-done }
}

func TestDispatcherDeliversInOrderAndDrainsAtTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := new(fakeOutput), new(fakeOutput)
		d := NewDispatcher(quiet(), Enforcement{}, nil, []Named{{"a", a}, {"b", b}})
		stop := start(t, d)
		for range 1000 {
			d.Submit(report)
			d.Submit(detector.Decision{}) // nothing to say
		}
		stop()
		for name, o := range map[string]*fakeOutput{"a": a, "b": b} {
			if diff := cmp.Diff(sequences(1, 1000), o.taken()); diff != "" {
				t.Errorf("output %s: (-want +got)\n%s", name, diff)
			}
		}
		want := Stats{Outputs: []LaneStats{{Name: "a", Delivered: 1000}, {Name: "b", Delivered: 1000}}}
		if diff := cmp.Diff(want, d.Stats()); diff != "" {
			t.Errorf("stats: (-want +got)\n%s", diff)
		}
	})
}

func TestDispatcherNumbersEventsInTheOrderOfDelivery(t *testing.T) {
	o := new(fakeOutput)
	d := NewDispatcher(quiet(), Enforcement{}, nil, []Named{{"o", o}})
	stop := start(t, d)
	const each = 10_000
	var senders sync.WaitGroup
	for range 2 {
		senders.Go(func() {
			for range each {
				d.Submit(report)
			}
		})
	}
	senders.Wait()
	stop()
	if !slices.Equal(o.taken(), sequences(1, 2*each)) {
		t.Error("events of two senders came out of order")
	}
}

func TestDispatcherRetriesAFailingOutputWithoutDelayingOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logger, hook := test.NewNullLogger()
		bad, good := &fakeOutput{broken: true}, new(fakeOutput)
		d := NewDispatcher(logrus.NewEntry(logger), Enforcement{}, nil, []Named{{"bad", bad}, {"good", good}})
		stop := start(t, d)
		d.Submit(report)
		time.Sleep(time.Minute) // of the bubble's clock: many retries
		synctest.Wait()
		if got := good.taken(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("the working output took %v, want event 1", got)
		}
		if got := len(hook.AllEntries()); got != 1 {
			t.Errorf("logged %d lines about one failing output, want 1", got)
		}
		bad.set(false)
		d.Submit(report)
		time.Sleep(retryMax)
		synctest.Wait()
		if got := bad.taken(); !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("the mended output took %v, want events 1 and 2 in order", got)
		}
		stop()
	})
}

func TestDispatcherDropsTheOldestAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := new(fakeOutput)
		d := NewDispatcher(quiet(), Enforcement{}, nil, []Named{{"o", o}})
		const extra = 10
		for range queueLimit + extra { // nobody takes them yet
			d.Submit(report)
		}
		start(t, d)()
		if got := d.Stats().Dropped; got != extra {
			t.Errorf("dropped %d, want %d", got, extra)
		}
		if diff := cmp.Diff(sequences(extra+1, queueLimit+extra), o.taken()); diff != "" {
			t.Error("the oldest events should have gone")
		}
	})
}

func TestDispatcherStopsInBoundedTime(t *testing.T) {
	tests := map[string]struct {
		output *fakeOutput
		within time.Duration
	}{
		"failing output": {&fakeOutput{broken: true}, 0},
		"slowly failing": {&fakeOutput{broken: true, slow: true}, time.Second},
		"stuck output":   {&fakeOutput{stuck: true}, drainDeadline},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := NewDispatcher(quiet(), Enforcement{}, nil, []Named{{"o", test.output}})
				stop := start(t, d)
				for range 1000 {
					d.Submit(report)
				}
				synctest.Wait()
				began := time.Now()
				stop()
				if took := time.Since(began); took > test.within {
					t.Errorf("the stop took %v, want at most %v", took, test.within)
				}
				if got := d.Stats().Outputs[0].Dropped; got != 1000 {
					t.Errorf("counted %d events as lost, want 1000", got)
				}
			})
		})
	}
}

func TestDispatcherTellsTheTruthAboutBlocked(t *testing.T) {
	source := netip.MustParsePrefix("192.0.2.7/32")
	tests := map[string]struct {
		outputs []*fakeBans
		want    detector.Tri
	}{
		"no ban output":     {nil, detector.False},
		"confirmed":         {[]*fakeBans{{}}, detector.True},
		"refused":           {[]*fakeBans{{err: errors.New("no such table")}}, detector.False},
		"no answer in time": {[]*fakeBans{{err: context.DeadlineExceeded}}, detector.False},
		"one of two":        {[]*fakeBans{{err: errors.New("refused")}, {}}, detector.True},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var bans []NamedBans
				for _, b := range test.outputs {
					bans = append(bans, NamedBans{"fake", b})
				}
				o := new(fakeOutput)
				d := NewDispatcher(quiet(), Enforcement{Outputs: bans}, nil, []Named{{"o", o}})
				stop := start(t, d)
				with := report
				with.Ban = &detector.Ban{Source: source}
				d.Submit(with)
				d.Submit(report)
				stop()
				if got := fmt.Sprint(o.blocked); got != fmt.Sprintf("[%v unset]", test.want) {
					t.Errorf("blocked flags %v, want [%v unset]", got, test.want)
				}
				for i, b := range test.outputs {
					if len(b.got) != 1 || b.got[0].Source != source {
						t.Errorf("ban output %d was told %v, want the one ban", i, b.got)
					}
				}
			})
		})
	}
}

// Names come to the events that want one, in order with those that do not, and
// nothing waits for names at the stop.
func TestDispatcherNamesSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lookup := func(ctx context.Context, addr string) ([]string, error) {
			if addr == "192.0.2.2" { // its name server does not answer
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return []string{"scanner.example.net."}, nil
		}
		j := new(journal)
		o := outputFunc(func(events []detector.Event) {
			for i := range events {
				j.lines = append(j.lines, fmt.Sprint(events[i].Sequence, events[i].Host))
			}
		})
		d := NewDispatcher(quiet(), Enforcement{}, names.New(names.Options{Within: time.Hour, Lookup: lookup}), []Named{{"o", o}})
		stop := start(t, d)
		d.Submit(scan("192.0.2.1", false))
		d.Submit(scan("192.0.2.2", false))
		d.Tell(detector.Event{Action: detector.DaemonStarted})
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took > 0 {
			t.Errorf("the stop took %v, want none", took)
		}
		if diff := cmp.Diff([]string{"1scanner.example.net", "2", "3"}, j.lines); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

type outputFunc func([]detector.Event)

func (f outputFunc) Deliver(_ context.Context, events []detector.Event) error {
	f(events)
	return nil
}

// patient is a ban output that works until it is told to stop.
type patient struct{}

func (patient) ChangeBans(ctx context.Context, _, _ []detector.Ban) ([]Result, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A ban that takes long is given up at the stop, early enough for its event to
// reach the outputs.
func TestDispatcherStopsWithABanUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := new(fakeOutput)
		d := NewDispatcher(quiet(), Enforcement{Outputs: []NamedBans{{"patient", patient{}}}, Deadline: time.Hour}, nil, []Named{{"o", o}})
		stop := start(t, d)
		d.Submit(scan("192.0.2.1", true))
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took != settleDeadline {
			t.Errorf("the stop took %v, want %v", took, settleDeadline)
		}
		if got := fmt.Sprint(o.taken(), o.blocked); got != "[1] [false]" {
			t.Errorf("the output took %s, want [1] [false]", got)
		}
	})
}

// deaf is a ban output that does not look whether it should stop.
type deaf struct{ asked int }

func (d *deaf) ChangeBans(_ context.Context, add, _ []detector.Ban) ([]Result, error) {
	d.asked += len(add)
	time.Sleep(time.Second) // of the bubble's clock
	return nil, nil
}

// Bans that wait at the stop are given up, whatever their output makes of it.
func TestDispatcherStopsWithManyBansWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, bans := new(fakeOutput), new(deaf)
		d := NewDispatcher(quiet(), Enforcement{Outputs: []NamedBans{{"deaf", bans}}, OneByOne: true}, nil, []Named{{"o", o}})
		stop := start(t, d)
		const many = 1000
		for range many {
			d.Submit(scan("192.0.2.1", true))
		}
		began := time.Now()
		stop()
		if took := time.Since(began); took > settleDeadline+time.Second {
			t.Errorf("the stop took %v, want at most %v", took, settleDeadline+time.Second)
		}
		if len(o.taken()) != many || bans.asked > 3 {
			t.Errorf("%d events and %d bans, want all %d events and no more than 3 bans", len(o.taken()), bans.asked, many)
		}
	})
}

func BenchmarkDispatch(b *testing.B) {
	d := NewDispatcher(quiet(), Enforcement{}, nil, []Named{{"o", discard{}}})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { d.Run(ctx); close(done) }()
	b.ReportAllocs()
	for b.Loop() {
		d.Submit(report)
	}
	cancel()
	<-done
}

type discard struct{}

func (discard) Deliver(context.Context, []detector.Event) error { return nil }

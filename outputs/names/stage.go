// Package names gives events the names of their sources, for PortSentry's
// RESOLVE_HOST.
//
// A name is what whoever runs the reverse zone of an address says. It is shown
// beside the address, never instead of it, and it is not confirmed by a lookup
// in the other direction, as PortSentry 1.2 does not. Confirming would cost a
// second lookup out of the same short time, would hide the many scanners whose
// names have no address, and would not make a name fit to act upon: its owner
// can add anybody's address to it, at any time. Only what a name may look like
// is limited; see [Safe].
package names

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portsnare/portsnare/detector"
)

const (
	// DefaultWithin is how long an event waits for a name when Options do not say.
	DefaultWithin = time.Second

	// queueLimit bounds the events that wait. When it is reached, the one that
	// has waited longest goes on without its name: nothing is dropped.
	queueLimit = 8192

	// batchLimit is the most events that are delivered at once.
	batchLimit = 256
)

// Options say how sources are named. The zero value asks the system's name
// service and takes a second at most.
type Options struct {
	// Within is the most that an event waits for its source's name, from
	// Push to delivery; then it goes on without. Zero means DefaultWithin.
	Within time.Duration

	// Lookup returns the names of an address, given without a zone. Names that
	// it returns beside an error count. It is called from several goroutines,
	// and must return soon once ctx ends. Nil asks /etc/hosts and the name
	// servers of /etc/resolv.conf.
	Lookup func(ctx context.Context, addr string) ([]string, error)
}

// A Stage names the sources of events on their way to the outputs. Events keep
// their order, and none waits for longer than Options.Within, whatever those
// before it wait for: every lookup begins when its event comes in. What the
// lookups take is bounded too; beyond that, sources stay without a name.
type Stage struct {
	within   time.Duration
	resolver *resolver
	queue    chan held
	hurry    chan struct{} // taken by Run for each event that must make room

	late, hurried atomic.Uint64
}

// A held event waits for its turn and for the name of its source.
type held struct {
	event    detector.Event
	question *question // nil: there is nothing to wait for
	deadline time.Time
}

// Stats are a Stage's counters since it was made.
type Stats struct {
	Lookups uint64 // asked of the name service
	Failed  uint64 // of these, had no answer: no server, no time, no sense
	Refused uint64 // of these, had only names that are not safe to show
	Cached  uint64 // events whose source was remembered, with a name or as having none
	Unasked uint64 // events whose source was not looked up: too many others were
	Late    uint64 // events that passed before the answer came
	Hurried uint64 // events that had to make room because too many waited
}

// New returns a stage. It does nothing until Run.
func New(o Options) *Stage {
	if o.Within <= 0 {
		o.Within = DefaultWithin
	}
	if o.Lookup == nil {
		o.Lookup = systemLookup
	}
	return &Stage{
		within:   o.Within,
		resolver: newResolver(o.Lookup, o.Within),
		queue:    make(chan held, queueLimit),
		hurry:    make(chan struct{}),
	}
}

// Push takes copies of events and begins the lookups of their sources. When
// too many events wait it hurries the oldest on and takes their places, which
// takes as long as Run's deliver does. It is for one goroutine, until Close.
func (s *Stage) Push(events []detector.Event) {
	now := time.Now()
	for i := range events {
		h := held{event: events[i], deadline: now.Add(s.within)}
		// An ignored source is the administrator's own; nothing is done about it.
		if h.event.Action == detector.ScanDetected {
			h.event.Host, h.question = s.resolver.ask(h.event.Probe.Source.Addr(), now)
		}
		s.put(&h)
	}
}

// put queues h. It hurries nobody while there is room.
func (s *Stage) put(h *held) {
	for {
		select {
		case s.queue <- *h:
			return
		default:
		}
		select {
		case s.queue <- *h:
			return
		case s.hurry <- struct{}{}:
		}
	}
}

// Close tells Run that no more events come.
func (s *Stage) Close() { close(s.queue) }

// Run hands the events to deliver, in the order of Push and from this
// goroutine, at most 256 at once; deliver must not keep the slice. Once ctx ends
// no event waits any longer: those that are still without a name go on without.
// Run returns after Close, when all are delivered.
func (s *Stage) Run(ctx context.Context, deliver func([]detector.Event)) {
	ctx, stop := context.WithCancel(ctx)
	var workers sync.WaitGroup
	for range maxLookups {
		workers.Go(func() { s.resolver.work(ctx) })
	}
	defer workers.Wait()
	defer stop()

	batch := make([]detector.Event, 0, batchLimit)
	flush := func() {
		if len(batch) > 0 {
			deliver(batch)
			batch = batch[:0]
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for h := range s.queue {
		if h.waits() {
			flush()
			s.wait(ctx, timer, &h)
		}
		s.name(&h)
		batch = append(batch, h.event)
		if len(batch) == batchLimit || len(s.queue) == 0 {
			flush()
		}
	}
	flush()
}

// waits reports whether the event has to wait for its name and still may.
func (h *held) waits() bool {
	return h.question != nil && !h.question.answered() && time.Now().Before(h.deadline)
}

// wait returns when the answer is there or the event must go on without it.
func (s *Stage) wait(ctx context.Context, timer *time.Timer, h *held) {
	timer.Reset(time.Until(h.deadline))
	select {
	case <-h.question.done:
	case <-timer.C:
	case <-s.hurry:
		s.hurried.Add(1)
	case <-ctx.Done():
	}
}

// name gives the event the name that was waited for, if it came.
func (s *Stage) name(h *held) {
	switch {
	case h.question == nil:
	case h.question.answered():
		h.event.Host = h.question.name
	default:
		s.late.Add(1)
	}
}

// Stats returns the counters. It is safe for concurrent use.
func (s *Stage) Stats() Stats {
	r := s.resolver
	return Stats{
		Lookups: r.lookups.Load(),
		Failed:  r.failed.Load(),
		Refused: r.refused.Load(),
		Cached:  r.cached.Load(),
		Unasked: r.unasked.Load(),
		Late:    s.late.Load(),
		Hurried: s.hurried.Load(),
	}
}

// key is the address to look up for a source, and to remember it by. A zone
// means nothing to a name server.
func key(source netip.Addr) netip.Addr { return source.Unmap().WithZone("") }

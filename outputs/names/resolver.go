package names

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxLookups bounds the lookups at once, and maxWaiting those that wait
	// for their turn. A source beyond both is not looked up.
	maxLookups = 64
	maxWaiting = 1024

	// maxPerSecond bounds the lookups begun in a second. Whoever forges
	// sources chooses whose name servers we ask, and must not be able to turn
	// every packet into a query.
	maxPerSecond = 256

	// A lookup goes on for lateLimit after the wait for a name: an answer too
	// late for its event serves the next.
	lateLimit = 4 * time.Second

	// The answer to a lookup does not say how long it holds, so a name is
	// remembered for keepName. That there is none, or that nobody answered, is
	// remembered for keepNone, so that servers which never answer are not
	// waited for again with every probe.
	keepName = 10 * time.Minute
	keepNone = time.Minute

	// maxRemembered bounds the sources remembered. When it is reached, a
	// newcomer replaces that one of evictionLooks which expires first: those
	// without a name go before those with one.
	maxRemembered = 10_000
	evictionLooks = 8
)

// A resolver looks names up in the background and remembers them.
type resolver struct {
	lookup  func(ctx context.Context, addr string) ([]string, error)
	within  time.Duration // how long whoever asks waits
	waiting chan *question

	lookups, failed, refused, cached, unasked atomic.Uint64

	mu         sync.Mutex
	pending    map[netip.Addr]*question  // guarded by mu; waiting, or at a worker
	remembered map[netip.Addr]remembered // guarded by mu
	second     time.Time                 // guarded by mu; when the current second began
	begun      int                       // guarded by mu; lookups begun in it
}

// A question is a lookup under way. Its name may be read once done is closed.
type question struct {
	source netip.Addr
	asked  time.Time
	done   chan struct{}
	name   string // "": none that may be shown
}

func (q *question) answered() bool {
	select {
	case <-q.done:
		return true
	default:
		return false
	}
}

type remembered struct {
	name  string // "": none
	until time.Time
}

func newResolver(lookup func(context.Context, string) ([]string, error), within time.Duration) *resolver {
	return &resolver{
		lookup:     lookup,
		within:     within,
		waiting:    make(chan *question, maxWaiting),
		pending:    make(map[netip.Addr]*question),
		remembered: make(map[netip.Addr]remembered),
	}
}

// ask returns the remembered name of source, or the question to wait for, or
// neither when too much is under way. It never blocks.
func (r *resolver) ask(source netip.Addr, now time.Time) (string, *question) {
	source = key(source)
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.remembered[source]; ok && now.Before(known.until) {
		r.cached.Add(1)
		return known.name, nil
	}
	q := r.pending[source]
	if q == nil {
		q = r.beginLocked(source, now)
	}
	return "", q
}

// beginLocked queues a lookup, or counts and returns nil.
func (r *resolver) beginLocked(source netip.Addr, now time.Time) *question {
	if now.Sub(r.second) >= time.Second {
		r.second, r.begun = now, 0
	}
	if r.begun >= maxPerSecond {
		r.unasked.Add(1)
		return nil
	}
	q := &question{source: source, asked: now, done: make(chan struct{})}
	select {
	case r.waiting <- q:
	default:
		r.unasked.Add(1)
		return nil
	}
	r.begun++
	r.pending[source] = q
	return q
}

// work answers questions until ctx ends.
func (r *resolver) work(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case q := <-r.waiting:
			r.answer(ctx, q)
		case <-ctx.Done():
		}
	}
}

func (r *resolver) answer(ctx context.Context, q *question) {
	// Whoever asked has gone on by now. Asking all the same would make those
	// wait who can still be answered in time.
	stale := time.Since(q.asked) >= r.within
	if !stale {
		q.name = r.find(ctx, q.source)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !stale {
		r.rememberLocked(q)
	}
	delete(r.pending, q.source)
	close(q.done)
}

// find asks the name service for a name to show.
func (r *resolver) find(ctx context.Context, source netip.Addr) string {
	ctx, cancel := context.WithTimeout(ctx, r.within+lateLimit)
	defer cancel()
	r.lookups.Add(1)
	found, err := r.lookup(ctx, source.String())
	name := choose(found)
	switch {
	case name != "":
	case len(found) > 0:
		r.refused.Add(1)
	case err != nil && !isNotFound(err):
		r.failed.Add(1)
	}
	return name
}

func isNotFound(err error) bool {
	answer, ok := errors.AsType[*net.DNSError](err)
	return ok && answer.IsNotFound
}

func (r *resolver) rememberLocked(q *question) {
	if _, known := r.remembered[q.source]; !known && len(r.remembered) >= maxRemembered {
		r.forgetLocked()
	}
	keep := keepName
	if q.name == "" {
		keep = keepNone
	}
	r.remembered[q.source] = remembered{q.name, time.Now().Add(keep)}
}

// forgetLocked forgets, of a few sources, the one that expires first. Go visits
// a map in random order, so nobody can choose which.
func (r *resolver) forgetLocked() {
	var first netip.Addr
	looked := 0
	for source, known := range r.remembered {
		if looked == 0 || known.until.Before(r.remembered[first].until) {
			first = source
		}
		if looked++; looked == evictionLooks {
			break
		}
	}
	delete(r.remembered, first)
}

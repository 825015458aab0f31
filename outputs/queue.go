package outputs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A queue is a bounded first-in-first-out queue. When it is full the oldest
// item makes room, and the loss is counted: what is new matters more, and the
// producer never waits. Memory grows with what waits, up to queueLimit items.
type queue[T any] struct {
	dropped atomic.Uint64
	closed  chan struct{} // closed by close

	mu    sync.Mutex
	ready *sync.Cond // an item came, or the queue was closed
	items []T        // guarded by mu; a ring of a power of two, from head on
	head  int        // guarded by mu
	n     int        // guarded by mu
	done  bool       // guarded by mu
}

func newQueue[T any]() *queue[T] {
	q := &queue[T]{closed: make(chan struct{})}
	q.ready = sync.NewCond(&q.mu)
	return q
}

// push appends a copy of *item; after close it drops it. It returns the oldest
// item if that had to make room: to keep it or to count it is the caller's.
func (q *queue[T]) push(item *T) (oldest T, full bool) {
	q.mu.Lock()
	oldest, full = q.pushLocked(item)
	q.mu.Unlock()
	q.ready.Signal()
	return oldest, full
}

// pushAll appends copies of items.
func (q *queue[T]) pushAll(items []T) {
	q.mu.Lock()
	for i := range items {
		if _, full := q.pushLocked(&items[i]); full {
			q.dropped.Add(1)
		}
	}
	q.mu.Unlock()
	q.ready.Signal()
}

func (q *queue[T]) pushLocked(item *T) (oldest T, full bool) {
	if q.done {
		q.dropped.Add(1)
		return oldest, false
	}
	if q.n == len(q.items) && !q.growLocked() {
		oldest, full = q.items[q.head], true
		q.head = (q.head + 1) & (len(q.items) - 1)
		q.n--
	}
	q.items[(q.head+q.n)&(len(q.items)-1)] = *item
	q.n++
	return oldest, full
}

// growLocked doubles the ring and reports whether it could.
func (q *queue[T]) growLocked() bool {
	if len(q.items) >= queueLimit {
		return false
	}
	grown := make([]T, max(2*len(q.items), batchLimit))
	n := copy(grown, q.items[q.head:])
	copy(grown[n:], q.items[:q.head])
	q.items, q.head = grown, 0
	return true
}

// pop waits for items and replaces the content of batch by the oldest of them,
// at most its capacity. It returns false once the queue is closed and empty.
func (q *queue[T]) pop(batch *[]T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 {
		if q.done {
			return false
		}
		q.ready.Wait()
	}
	*batch = (*batch)[:0]
	var zero T
	for q.n > 0 && len(*batch) < cap(*batch) {
		*batch = append(*batch, q.items[q.head])
		q.items[q.head] = zero // what it points to may be freed
		q.head = (q.head + 1) & (len(q.items) - 1)
		q.n--
	}
	return true
}

// close lets pop return what is left and then false. Only the first call
// counts.
func (q *queue[T]) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.done {
		q.done = true
		close(q.closed)
		q.ready.Broadcast()
	}
}

// wait returns true after the delay, or false at once when ctx ends or the
// queue is closed.
func (q *queue[T]) wait(ctx context.Context, delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-q.closed:
		return false
	case <-ctx.Done():
		return false
	}
}

package outputs

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/internal/state"
)

// carrier writes down what it takes, once it works.
type carrier struct {
	mu     sync.Mutex
	took   []string
	broken bool
}

func (c *carrier) DeliverOf(_ context.Context, bootID string, events []detector.Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return errors.New("away")
	}
	for i := range events {
		c.took = append(c.took, fmt.Sprintf("%s-%d", bootID, events[i].Sequence))
	}
	return nil
}

func (c *carrier) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = false
}

func (c *carrier) taken() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.took...)
}

func openQueue(t *testing.T, path string) (*state.Queue, func()) {
	t.Helper()
	db, err := state.Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	queue, err := db.Queue("test", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return queue, func() {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func numbered(first, last uint64) []detector.Event {
	var events []detector.Event
	for n := first; n <= last; n++ {
		ev := scan("192.0.2.1", false).Event
		ev.Sequence, ev.At = n, time.Unix(int64(n), 0)
		events = append(events, ev)
	}
	return events
}

// Events reach a carrier that was away, and those of a run of the daemon that has
// ended reach it in the next one, under the name of theirs.
func TestSpoolLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	queue, closeQueue := openQueue(t, path)
	away := &carrier{broken: true}
	deliver := func(s *Spool, first, last uint64) {
		t.Helper()
		if err := s.Deliver(t.Context(), numbered(first, last)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(s *Spool) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.Run(ctx); close(ended) }()
		return func() { cancel(); <-ended }
	}

	first := NewSpool("one", queue, away, quiet())
	stop := run(first)
	deliver(first, 1, 300)
	nettest.WaitFor(t, "a delivery that fails", func() bool { return first.Stats().Failures > 0 })
	stop()
	if got := first.Stats(); got.Waiting != 300 || got.Delivered != 0 {
		t.Errorf("after the first run: %+v, want 300 events that wait", got)
	}
	closeQueue()

	queue, closeQueue = openQueue(t, path)
	defer closeQueue()
	if err := queue.Append([][]byte{[]byte("no event")}); err != nil {
		t.Fatal(err)
	}
	second := NewSpool("two", queue, away, quiet())
	stop = run(second)
	defer stop()
	deliver(second, 1, 2)
	away.mend()
	nettest.WaitFor(t, "all events", func() bool { return len(away.taken()) >= 302 })
	var want []string
	for n := range 300 {
		want = append(want, fmt.Sprintf("one-%d", n+1))
	}
	want = append(want, "two-1", "two-2")
	if diff := cmp.Diff(want, away.taken()); diff != "" {
		t.Errorf("the carrier took (-want +got)\n%s", diff)
	}
	nettest.WaitFor(t, "an empty queue", func() bool { return second.Stats().Waiting == 0 })
	if got := second.Stats(); got.Unreadable != 1 || got.Delivered != 302 {
		t.Errorf("counted %+v, want 302 delivered and 1 unreadable", got)
	}
}

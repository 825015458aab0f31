package main

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

// taker takes events, unless it is broken.
type taker struct {
	took   []uint64
	broken bool
}

func (o *taker) Deliver(_ context.Context, events []detector.Event) error {
	if o.broken {
		return errors.New("disk full")
	}
	for i := range events {
		o.took = append(o.took, events[i].Sequence)
	}
	return nil
}

func TestLimitedOutput(t *testing.T) {
	at := time.Date(2026, 11, 22, 7, 44, 33, 0, time.UTC)
	var batch []detector.Event
	for n := range uint64(10) {
		ev := detector.Event{Sequence: n + 1, At: at.Add(time.Duration(n/5) * time.Second)} // five in each of two seconds
		if ev.Sequence == 5 {
			ev.Action = detector.PacketsLost
		}
		batch = append(batch, ev)
	}
	out, leftOut := &taker{broken: true}, new(atomic.Uint64)
	l := &limited{Output: out, perSecond: 2, leftOut: leftOut}
	if err := l.Deliver(t.Context(), batch); err == nil {
		t.Fatal("the output's error is lost")
	}
	if leftOut.Load() > 0 {
		t.Errorf("%d events of a batch that comes again are counted", leftOut.Load())
	}
	out.broken = false
	for _, part := range [][]detector.Event{batch[:3], batch[3:]} {
		if err := l.Deliver(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]uint64{1, 2, 5, 6, 7}, out.took); diff != "" {
		t.Errorf("events (-want +got)\n%s", diff)
	}
	if got := leftOut.Load(); got != 5 {
		t.Errorf("%d events left out, want 5", got)
	}
}

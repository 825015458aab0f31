package main

import (
	"context"
	"sync/atomic"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs"
)

// A limited output gets no more than so many probes in a second, so that whoever
// forges sources does not fill the disk. What is no probe always passes.
type limited struct {
	outputs.Output
	perSecond int
	leftOut   *atomic.Uint64

	passed allowance
	kept   []detector.Event // kept from batch to batch
}

// An allowance counts what has passed in a second.
type allowance struct {
	second int64 // since 1970
	taken  int   // in it
}

// Deliver hands over what is allowed. After an error the same events come again,
// and none of them has been counted.
func (l *limited) Deliver(ctx context.Context, events []detector.Event) error {
	before := l.passed
	l.kept = l.kept[:0]
	for i := range events {
		if l.passes(&events[i]) {
			l.kept = append(l.kept, events[i])
		}
	}
	if err := l.Output.Deliver(ctx, l.kept); err != nil {
		l.passed = before
		return err
	}
	l.leftOut.Add(uint64(len(events) - len(l.kept)))
	return nil
}

func (l *limited) passes(ev *detector.Event) bool {
	if !ev.IsProbe() {
		return true
	}
	if second := ev.At.Unix(); second != l.passed.second {
		l.passed = allowance{second: second}
	}
	l.passed.taken++
	return l.passed.taken <= l.perSecond
}

package outputs

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/proto"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/state"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// A Carrier takes events of a run of the daemon. It is what a [Module] is to a
// [Spool]. After an error all of them come again.
type Carrier interface {
	DeliverOf(ctx context.Context, bootID string, events []detector.Event) error
}

var (
	_ Output  = (*Spool)(nil)
	_ Carrier = (*Module)(nil)
)

// A Spool keeps events on the disk until a carrier has taken them, so that neither
// its absence nor the end of the daemon loses any, as long as the queue's bound
// allows. A carrier may get an event twice; boot ID and sequence tell.
type Spool struct {
	bootID string
	queue  *state.Queue
	to     Carrier
	log    *logrus.Entry

	stored  chan struct{} // holds one element when there may be something new
	failing bool          // the last delivery failed, and the log says so

	delivered, failures, unreadable atomic.Uint64
}

// NewSpool returns a spool for events of the run bootID. The queue stays the
// caller's to close.
func NewSpool(bootID string, queue *state.Queue, to Carrier, log *logrus.Entry) *Spool {
	return &Spool{bootID: bootID, queue: queue, to: to, log: log, stored: make(chan struct{}, 1)}
}

// SpoolStats are a spool's counters since it was made, and how much waits.
type SpoolStats struct {
	Waiting    int    // events on the disk
	Delivered  uint64 // events that the carrier took
	Dropped    uint64 // the oldest, because they took too much room
	Failures   uint64 // deliveries that failed
	Unreadable uint64 // events on the disk that make no sense
}

// Stats returns the counters. It is safe for concurrent use.
func (s *Spool) Stats() SpoolStats {
	q := s.queue.Stats()
	return SpoolStats{
		Waiting: q.Entries, Dropped: q.Dropped,
		Delivered: s.delivered.Load(), Failures: s.failures.Load(), Unreadable: s.unreadable.Load(),
	}
}

// Deliver stores events. It returns nil once they are on the disk.
func (s *Spool) Deliver(_ context.Context, events []detector.Event) error {
	records := make([][]byte, 0, len(events))
	for i := range events {
		message := outputv1.FromEvent(&events[i])
		record, err := proto.Marshal(&outputv1.DeliverRequest{
			BootId: s.bootID, Events: []*outputv1.Event{message}, LastSequence: events[i].Sequence,
		})
		if err != nil {
			return fmt.Errorf("store events: %w", err)
		}
		records = append(records, record)
	}
	if err := s.queue.Append(records); err != nil {
		return fmt.Errorf("store events: %w", err)
	}
	select {
	case s.stored <- struct{}{}:
	default:
	}
	return nil
}

// lastWords is how long Run goes on after its end, if all goes well.
const lastWords = time.Second

// Run hands what is stored to the carrier until ctx ends, and then for a second
// what is left. What it has not taken by then it gets from the next run's spool.
func (s *Spool) Run(ctx context.Context) {
	s.follow(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	for {
		if n, err := s.forward(ctx); n == 0 || err != nil {
			return
		}
	}
}

func (s *Spool) follow(ctx context.Context) {
	delay := time.Duration(0)
	for {
		n, err := s.forward(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			delay = min(max(2*delay, retryMin), retryMax)
			if !pause(ctx, delay) {
				return
			}
			continue
		case n > 0:
			delay = 0
			continue
		}
		select {
		case <-s.stored:
		case <-ctx.Done():
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// forward hands over the oldest events of one run, and returns how many it removed.
func (s *Spool) forward(ctx context.Context) (int, error) {
	entries, err := s.queue.Peek(0, batchLimit)
	if err != nil || len(entries) == 0 {
		s.tell(err)
		return 0, err
	}
	bootID, events, used := s.read(entries)
	if len(events) > 0 {
		if err := s.to.DeliverOf(ctx, bootID, events); err != nil {
			s.failures.Add(1)
			if ctx.Err() == nil {
				s.tell(err)
			}
			return 0, err
		}
		s.delivered.Add(uint64(len(events)))
	}
	err = s.queue.Ack(entries[used-1].Key)
	s.tell(err)
	return used, err
}

// read returns the events of the first entries that are of one run, and how many
// entries these are. What makes no sense is passed over and counted: it would stand
// in the way for ever.
func (s *Spool) read(entries []state.Entry) (bootID string, events []detector.Event, used int) {
	for _, entry := range entries {
		request := new(outputv1.DeliverRequest)
		err := proto.Unmarshal(entry.Data, request)
		if err == nil && len(request.Events) != 1 {
			err = errors.New("not one event")
		}
		var event detector.Event
		if err == nil {
			event, err = outputv1.ToEvent(request.Events[0])
		}
		if err != nil {
			s.unreadable.Add(1)
			used++
			continue
		}
		if len(events) > 0 && request.BootId != bootID {
			return bootID, events, used
		}
		bootID = request.BootId
		events = append(events, event)
		used++
	}
	return bootID, events, used
}

// tell logs when deliveries begin and cease to fail, not each time in between.
func (s *Spool) tell(err error) {
	switch {
	case err != nil && !s.failing:
		s.log.WithError(err).Error("output fails, its events wait on the disk")
	case err == nil && s.failing:
		s.log.Info("output works again")
	}
	s.failing = err != nil
}

package outputs

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/names"
)

const (
	// queueLimit bounds the decisions and, for each output, the events that
	// wait. It is larger than one buffer of captured packets, so that a burst
	// on a machine of few cores is not lost here after the kernel kept it.
	queueLimit = 1 << 16

	// batchLimit is the most decisions or events handed over at once.
	batchLimit = 256

	// When Run is asked to stop, bans may take settleDeadline; then they are
	// given up, which takes as long as the outputs need to stop: a command that
	// is ended has two seconds or four. After that, what came of them and all
	// else that is queued has drainDeadline to reach the outputs.
	settleDeadline = time.Second
	drainDeadline  = 3 * time.Second

	// A failing output is tried again after retryMin, doubling to retryMax.
	retryMin, retryMax = 100 * time.Millisecond, 10 * time.Second
)

// A Dispatcher takes decisions from capture, makes bans effective, and hands
// the finished events to every output. Capture never waits for it: what does
// not fit into its bounded queues is dropped, oldest first, and counted; but of
// each source the first decision with a ban is kept.
type Dispatcher struct {
	enforcer *enforcer
	naming   *names.Stage // nil: sources have no names
	out      []*lane

	numbering sync.Mutex // held from giving a number to queueing it
	sequence  uint64     // of the event queued last; guarded by numbering
	queue     *queue[detector.Decision]

	// saved are the decisions with a ban that had to leave the full queue, the
	// first of each source. Guarded by numbering.
	saved map[netip.Prefix]detector.Decision
}

// Named is an output and the name that logs and counters give it.
type Named struct {
	Name   string
	Output Output
}

// NewDispatcher returns a dispatcher that puts bans in force as e says and hands
// events to the given outputs, after naming has found out the names of their
// sources; it may be nil. The dispatcher does nothing until Run.
func NewDispatcher(log *logrus.Entry, e Enforcement, naming *names.Stage, events []Named) *Dispatcher {
	d := &Dispatcher{
		enforcer: newEnforcer(e, log), naming: naming, queue: newQueue[detector.Decision](),
		saved: make(map[netip.Prefix]detector.Decision),
	}
	for _, o := range events {
		d.out = append(d.out, &lane{
			name: o.Name, output: o.Output, queue: newQueue[detector.Event](),
			log: log.WithField("output", o.Name),
		})
	}
	return d
}

// Submit numbers the event of a decision, queues it and returns at once. It is
// safe for concurrent use.
func (d *Dispatcher) Submit(decision detector.Decision) {
	if !decision.Report {
		return
	}
	d.numbering.Lock()
	defer d.numbering.Unlock()
	d.sequence++
	decision.Event.Sequence = d.sequence
	if oldest, full := d.queue.push(&decision); full && !d.saveLocked(&oldest) {
		d.queue.dropped.Add(1)
	}
}

// saveLocked keeps a decision that had to leave the queue if it has a ban and its
// source has no other that is kept, and reports whether it did. The caller holds
// numbering.
func (d *Dispatcher) saveLocked(displaced *detector.Decision) bool {
	if displaced.Ban == nil || len(d.saved) >= queueLimit {
		return false
	}
	source := displaced.Ban.Source
	if _, known := d.saved[source]; known {
		return false
	}
	d.saved[source] = *displaced
	return true
}

// takeSaved removes what was saved of the time before an event, and returns it in
// the order of its events. What is left is older than the next batch.
func (d *Dispatcher) takeSaved(before uint64) []detector.Decision {
	d.numbering.Lock()
	defer d.numbering.Unlock()
	var saved []detector.Decision
	for source, decision := range d.saved {
		if decision.Event.Sequence < before {
			saved = append(saved, decision)
			delete(d.saved, source)
		}
	}
	slices.SortFunc(saved, func(a, b detector.Decision) int {
		return cmp.Compare(a.Event.Sequence, b.Event.Sequence)
	})
	return saved
}

// Tell reports an event that came from no probe.
func (d *Dispatcher) Tell(event detector.Event) {
	d.Submit(detector.Decision{Report: true, Event: event})
}

// Stats are a dispatcher's counters since it was made.
type Stats struct {
	Dropped uint64 // events lost because the decision queue was full
	Bans    EnforcementStats
	Outputs []LaneStats // one for each output, in the order given
}

// LaneStats are one output's counters.
type LaneStats struct {
	Name      string
	Delivered uint64 // events the output took
	Dropped   uint64 // events lost because its queue was full, or at the stop
	Failures  uint64 // deliveries that failed and were tried again
}

// Stats returns the counters. It is safe for concurrent use.
func (d *Dispatcher) Stats() Stats {
	s := Stats{Dropped: d.queue.dropped.Load(), Bans: d.enforcer.snapshot()}
	for _, l := range d.out {
		s.Outputs = append(s.Outputs, l.stats())
	}
	return s
}

// Run dispatches until ctx ends, then drains what is queued in bounded time. It
// returns once every output is at rest.
func (d *Dispatcher) Run(ctx context.Context) {
	// Outputs outlive ctx by the drain; this context ends the drain itself.
	drain, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	banning, stopBanning := context.WithCancel(drain)
	defer stopBanning()
	stop := context.AfterFunc(ctx, func() {
		d.queue.close()
		time.AfterFunc(settleDeadline, stopBanning)
	})
	defer stop()

	var lanes sync.WaitGroup
	for _, l := range d.out {
		lanes.Go(func() { l.run(drain) })
	}
	if d.enforcer.Bans != nil {
		lanes.Go(func() { d.expire(ctx) })
	}
	if d.naming == nil {
		d.settle(banning, d.deliver)
	} else {
		d.settleAndName(ctx, banning)
	}
	time.AfterFunc(drainDeadline, cancel) // ctx has ended, or settle would go on
	for _, l := range d.out {
		l.queue.close()
	}
	lanes.Wait()
}

// settle completes events until the queue is closed and empty.
func (d *Dispatcher) settle(ctx context.Context, deliver func([]detector.Event)) {
	batch := make([]detector.Decision, 0, batchLimit)
	for d.queue.pop(&batch) {
		d.enforcer.settle(ctx, d.takeSaved(batch[0].Event.Sequence), deliver)
		d.enforcer.settle(ctx, batch, deliver)
	}
}

// settleAndName is settle with names. Once ctx ends, no event waits for one.
func (d *Dispatcher) settleAndName(ctx, banning context.Context) {
	var named sync.WaitGroup
	named.Go(func() { d.naming.Run(ctx, d.deliver) })
	d.settle(banning, d.naming.Push)
	d.naming.Close()
	named.Wait()
}

// Ban puts a ban in force that was decided elsewhere, by the operator or another
// program, and returns it as it is then. An error wraps a *[SparedError], or one of
// [detector.Bans.Impose]; or it says why no output has done it.
func (d *Dispatcher) Ban(ctx context.Context, ban detector.Ban) (detector.Ban, error) {
	ban, result, err := d.enforcer.impose(ctx, ban)
	if err == nil {
		err = result.Err
	}
	if err == nil {
		d.tellOfBan(detector.BanBegan, ban)
	}
	return ban, err
}

// Bans returns all bans that are to be in force, also those that outputs are just
// being told of, for an output that has started anew. It does not block.
func (d *Dispatcher) Bans() []detector.Ban { return d.enforcer.current() }

// Unban lifts the bans of prefix and of everything inside it, for good: its
// offences are forgotten, and for a while the policy does not ban it again. It
// returns the bans that there were.
func (d *Dispatcher) Unban(ctx context.Context, prefix netip.Prefix) ([]detector.Ban, error) {
	bans, err := d.enforcer.pardon(ctx, prefix)
	for _, ban := range bans {
		d.tellOfBan(detector.BanEnded, ban)
	}
	return bans, err
}

// Spare lifts the bans of whom must never be banned by now, and returns them. It
// is for the moment after the never-ban set was changed by order; what changes by
// itself is noticed in time.
func (d *Dispatcher) Spare(ctx context.Context) []detector.Ban {
	bans := d.enforcer.spare(ctx)
	for _, ban := range bans {
		d.tellOfBan(detector.BanEnded, ban)
	}
	return bans
}

const (
	// expireInterval is how often bans are ended whose time has come.
	expireInterval = time.Second

	// spareInterval is how often bans are compared with the never-ban set: an
	// address may become one of this host after it was banned.
	spareInterval = 10 * time.Second
)

// expire ends bans until ctx ends.
func (d *Dispatcher) expire(ctx context.Context) {
	ended, spared := time.NewTicker(expireInterval), time.NewTicker(spareInterval)
	defer ended.Stop()
	defer spared.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ended.C:
			bans, _ := d.enforcer.expire(ctx) // there are bans, or we would not be here
			for _, ban := range bans {
				d.tellOfBan(detector.BanEnded, ban)
			}
			d.enforcer.catchUp(ctx)
		case <-spared.C:
			d.Spare(ctx)
		}
	}
}

func (d *Dispatcher) tellOfBan(action detector.Action, ban detector.Ban) {
	d.Tell(detector.Event{At: time.Now(), Action: action, Ban: &ban})
}

// deliver queues finished events for every output.
func (d *Dispatcher) deliver(events []detector.Event) {
	for _, l := range d.out {
		l.queue.pushAll(events)
	}
}

// A lane is one output with its queue and worker, so that a slow output
// delays only itself.
type lane struct {
	name   string
	output Output
	queue  *queue[detector.Event]
	log    *logrus.Entry

	failing bool // the last delivery failed, and the log says so

	delivered, failures, dropped atomic.Uint64
}

func (l *lane) stats() LaneStats {
	return LaneStats{
		Name:      l.name,
		Delivered: l.delivered.Load(),
		Dropped:   l.dropped.Load() + l.queue.dropped.Load(),
		Failures:  l.failures.Load(),
	}
}

func (l *lane) run(ctx context.Context) {
	batch := make([]detector.Event, 0, batchLimit)
	working := true
	for l.queue.pop(&batch) {
		if working = working && l.deliver(ctx, batch); !working {
			l.dropped.Add(uint64(len(batch)))
		}
	}
}

// deliver hands over one batch, again and again until the output takes it. It
// gives up for good when ctx ends, or when the dispatcher stops and the output
// fails: what it could not take in its life it will not take in the last
// seconds.
func (l *lane) deliver(ctx context.Context, batch []detector.Event) bool {
	delay := retryMin
	for ctx.Err() == nil {
		err := l.output.Deliver(ctx, batch)
		l.tell(err)
		if err == nil {
			l.delivered.Add(uint64(len(batch)))
			return true
		}
		l.failures.Add(1)
		if !l.queue.wait(ctx, delay) {
			return false
		}
		delay = min(2*delay, retryMax)
	}
	return false
}

// tell logs when the output begins and ceases to fail, not each time in between.
func (l *lane) tell(err error) {
	switch {
	case err != nil && !l.failing:
		l.log.WithError(err).Error("output fails, its events wait")
	case err == nil && l.failing:
		l.log.Info("output works again")
	}
	l.failing = err != nil
}

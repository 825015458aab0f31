package outputs

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/detector"
)

// Enforcement says how the bans that the engine asks for are put in force. The
// zero value bans nobody.
type Enforcement struct {
	Outputs []BanOutput

	// Spared reports whether a ban of source would hit what must never be
	// banned, and why. It is asked last, right before the outputs are told, and
	// must not block. Nil spares nobody.
	Spared func(source netip.Prefix) (why string, spared bool)

	// Ledger remembers who was banned. Without one every probe leads to its ban
	// again, as in PortSentry 2 without a BLOCKED_FILE.
	Ledger Ledger

	// LedgerOfAll has the ledger remember also the sources whom the policy does
	// not ban, as PortSentry 1.2 does.
	LedgerOfAll bool

	// OneByOne has each ban settled, and all events before it delivered, before
	// the next is begun: for outputs that take long for each.
	OneByOne bool

	// Deadline is how long the outputs may take for each call, two seconds if
	// it is zero.
	Deadline time.Duration
}

// A Ledger remembers who was banned. The dispatcher calls it from one goroutine.
type Ledger interface {
	Holds(source netip.Addr) bool

	// Add remembers the source of ev, also if it returns an error because it
	// could not write it down.
	Add(ev *detector.Event) error
}

// banDeadline is how long ban outputs may take unless the enforcement says
// otherwise.
const banDeadline = 2 * time.Second

// EnforcementStats are the counters of what became of bans.
type EnforcementStats struct {
	Banned uint64 // put in force by at least one output
	Failed uint64 // by none
	Spared uint64 // never to be banned
	Held   uint64 // probes of sources that were banned before
}

// An enforcer settles decisions: it puts their bans in force and completes their
// events.
type enforcer struct {
	Enforcement
	log *logrus.Entry

	// What waits for its outputs to be told, in the order of the decisions.
	events []detector.Event
	bans   []detector.Ban
	asked  []askedBan
	adding map[netip.Addr]int // the index in bans of a source, if there is a ledger

	failing, unwritten bool // the last ban, the last entry in the ledger; the log says so

	stats struct{ banned, failed, spared, held atomic.Uint64 }
}

// An askedBan is an event whose outcome depends on a ban.
type askedBan struct {
	event, ban int  // indices
	first      bool // the event that led to it, not a later one of its source
}

func newEnforcer(e Enforcement, log *logrus.Entry) *enforcer {
	if e.Deadline == 0 {
		e.Deadline = banDeadline
	}
	return &enforcer{Enforcement: e, log: log, adding: make(map[netip.Addr]int)}
}

// settle completes the events of a batch and hands them to deliver, in order and
// in one or more parts.
func (e *enforcer) settle(ctx context.Context, batch []detector.Decision, deliver func([]detector.Event)) {
	for i := range batch {
		e.take(&batch[i])
		if e.OneByOne && len(e.bans) > 0 {
			last := len(e.events) - 1
			ev := e.events[last]
			e.hand(e.events[:last], deliver)
			e.events, e.asked[0].event = append(e.events[:0], ev), 0
			e.enforce(ctx)
		}
	}
	e.enforce(ctx)
	e.hand(e.events, deliver)
	e.events = e.events[:0]
}

func (e *enforcer) hand(events []detector.Event, deliver func([]detector.Event)) {
	if len(events) > 0 {
		deliver(events)
	}
}

// take notes the event of a decision, and what it has to wait for.
func (e *enforcer) take(d *detector.Decision) {
	e.events = append(e.events, d.Event)
	ev := &e.events[len(e.events)-1]
	source := ev.Probe.Source.Addr()
	remembers := e.Ledger != nil && (d.Ban != nil || e.LedgerOfAll && reachedTrigger(ev))
	switch {
	case remembers && e.Ledger.Holds(source):
		ev.Held = true
		if d.Ban != nil {
			ev.Blocked = detector.True
		}
		e.stats.held.Add(1)
	case d.Ban == nil:
		if remembers {
			e.remember(ev)
		}
	default:
		e.ask(ev, d.Ban)
	}
}

// reachedTrigger reports whether ev is about a scan by somebody else.
func reachedTrigger(ev *detector.Event) bool {
	return ev.IsProbe() && ev.Triggered == detector.True && ev.Ignored == detector.False
}

// ask notes that ev waits for a ban, unless it must never be.
func (e *enforcer) ask(ev *detector.Event, ban *detector.Ban) {
	if e.Spared != nil {
		if why, spared := e.Spared(ban.Source); spared {
			ev.Reason = "never banned: " + why
			e.stats.spared.Add(1)
			return
		}
	}
	source := ev.Probe.Source.Addr()
	index, known := e.adding[source]
	if !known {
		index = len(e.bans)
		e.bans = append(e.bans, *ban)
		if e.Ledger != nil {
			e.adding[source] = index
		}
	}
	e.asked = append(e.asked, askedBan{event: len(e.events) - 1, ban: index, first: !known})
}

// enforce puts in force what was asked for, and completes the events.
func (e *enforcer) enforce(ctx context.Context) {
	if len(e.bans) == 0 {
		return
	}
	results := e.tell(ctx)
	for _, asked := range e.asked {
		ev, result := &e.events[asked.event], &results[asked.ban]
		ev.Blocked = detector.TriOf(result.Err == nil)
		switch {
		case asked.first:
			ev.Acts = result.Acts
			e.count(result)
			if result.Err == nil && e.Ledger != nil {
				e.remember(ev)
			}
		case result.Err == nil:
			ev.Held = true
			e.stats.held.Add(1)
		}
	}
	clear(e.adding)
	e.bans, e.asked = e.bans[:0], e.asked[:0]
}

func (e *enforcer) count(r *Result) {
	if r.Err == nil {
		e.stats.banned.Add(1)
	} else {
		e.stats.failed.Add(1)
	}
}

// tell tells every output the bans, all at the same time, and returns what came
// of each: nil as its error if any output has put it in force.
func (e *enforcer) tell(ctx context.Context) []Result {
	ctx, cancel := context.WithTimeout(ctx, e.Deadline)
	defer cancel()
	answers := make([][]Result, len(e.Outputs))
	var all sync.WaitGroup
	for i, output := range e.Outputs {
		all.Go(func() { answers[i] = ask(ctx, output, e.bans) })
	}
	all.Wait()

	results := make([]Result, len(e.bans))
	for i := range results {
		results[i] = merge(answers, i)
	}
	e.report(answers)
	return results
}

// ask tells one output the bans, and returns a result for each.
func ask(ctx context.Context, output BanOutput, bans []detector.Ban) []Result {
	results, err := output.Ban(ctx, bans)
	if err == nil && len(results) == len(bans) {
		return results
	}
	if err == nil && results != nil {
		err = errResults
	}
	results = make([]Result, len(bans))
	for i := range results {
		results[i].Err = err
	}
	return results
}

// merge returns what all outputs together made of ban i.
func merge(answers [][]Result, i int) Result {
	merged := Result{Err: errNoOutput}
	for _, results := range answers {
		r := &results[i]
		merged.Acts = append(merged.Acts, r.Acts...)
		if merged.Err != nil {
			merged.Err = r.Err
		}
	}
	return merged
}

// report logs when outputs begin and cease to fail, not each time in between.
// Where there are acts, the event tells.
func (e *enforcer) report(answers [][]Result) {
	var fault error
	for _, results := range answers {
		for i := range results {
			if results[i].Err != nil && len(results[i].Acts) == 0 {
				fault = results[i].Err
			}
		}
	}
	switch {
	case fault != nil && !e.failing:
		e.log.WithError(fault).Error("bans are not in force")
	case fault == nil && e.failing:
		e.log.Info("bans are in force again")
	}
	e.failing = fault != nil
}

// remember writes the source of ev into the ledger.
func (e *enforcer) remember(ev *detector.Event) {
	err := e.Ledger.Add(ev)
	if err != nil && !e.unwritten {
		e.log.WithError(err).Error("banned sources are not written down")
	}
	e.unwritten = err != nil
}

func (e *enforcer) snapshot() EnforcementStats {
	return EnforcementStats{
		Banned: e.stats.banned.Load(), Failed: e.stats.failed.Load(),
		Spared: e.stats.spared.Load(), Held: e.stats.held.Load(),
	}
}

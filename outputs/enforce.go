package outputs

import (
	"context"
	"errors"
	"fmt"
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
	Outputs []NamedBans

	// Bans decide how long a ban lasts and how many there may be. Nil means
	// that a ban lasts for as long as the ledger remembers it.
	Bans *detector.Bans

	// Ledger remembers who was banned, in the place of Bans: PortSentry's file
	// of blocked sources. With neither, every probe leads to its ban again, as
	// in PortSentry 2 without a BLOCKED_FILE.
	Ledger Ledger

	// LedgerOfAll has the ledger remember also the sources whom the policy does
	// not ban, as PortSentry 1.2 does.
	LedgerOfAll bool

	// Spared reports whether a ban of source would hit what must never be
	// banned, and why. It is asked last, right before the outputs are told, and
	// must not block. Nil spares nobody.
	Spared func(source netip.Prefix) (why string, spared bool)

	// DryRun has no output told of a ban. Events say what would be done.
	DryRun bool

	// OneByOne has each ban settled, and all events before it delivered, before
	// the next is begun: for outputs that take long for each.
	OneByOne bool

	// Deadline is how long the outputs may take for each call, two seconds if
	// it is zero.
	Deadline time.Duration
}

// NamedBans is a ban output and the name that logs give it.
type NamedBans struct {
	Name   string
	Output BanOutput
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
	Banned  uint64 // put in force by at least one output
	Failed  uint64 // by none
	Spared  uint64 // never to be banned
	Refused uint64 // too many, or pardoned a short while ago
	Held    uint64 // probes of sources that were banned before
}

// An enforcer settles decisions: it puts their bans in force and completes their
// events. It also puts in force, and lifts, what others decide.
type enforcer struct {
	Enforcement
	log *logrus.Entry

	// telling is held from asking Bans until the outputs have been told, so
	// that they hear of bans in the order in which these were decided.
	telling sync.Mutex

	// What waits for its outputs to be told, in the order of the decisions.
	events []detector.Event
	bans   []detector.Ban
	asked  []askedBan
	adding map[netip.Prefix]int // the index in bans of a source, where it is remembered

	underWay atomic.Pointer[[]detector.Ban] // that outputs are being told to add

	// behind are the outputs of whom nobody knows what they have in force, because
	// a call to them failed. Guarded by telling.
	behind []bool

	failing, unwritten bool // the last ban, the last entry in the ledger; the log says so

	stats struct{ banned, failed, spared, refused, held atomic.Uint64 }
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
	return &enforcer{Enforcement: e, log: log, adding: make(map[netip.Prefix]int), behind: make([]bool, len(e.Outputs))}
}

// settle completes the events of a batch and hands them to deliver, in order and
// in one or more parts.
func (e *enforcer) settle(ctx context.Context, batch []detector.Decision, deliver func([]detector.Event)) {
	for len(batch) > 0 {
		batch = batch[e.settlePart(ctx, batch, deliver):]
	}
}

// settlePart settles as many decisions of a batch as can be told together, and
// returns how many these are.
func (e *enforcer) settlePart(ctx context.Context, batch []detector.Decision, deliver func([]detector.Event)) int {
	e.telling.Lock()
	defer e.telling.Unlock()
	n := 0
	for n < len(batch) && !(e.OneByOne && len(e.bans) > 0) {
		e.take(&batch[n])
		n++
	}
	if last := len(e.events) - 1; e.OneByOne && len(e.bans) > 0 {
		hand(e.events[:last], deliver) // what is known need not wait
		e.events = append(e.events[:0], e.events[last])
		e.asked[0].event = 0
	}
	e.enforce(ctx)
	hand(e.events, deliver)
	e.events = e.events[:0]
	return n
}

func hand(events []detector.Event, deliver func([]detector.Event)) {
	if len(events) > 0 {
		deliver(events)
	}
}

// take notes the event of a decision, and what it has to wait for.
func (e *enforcer) take(d *detector.Decision) {
	e.events = append(e.events, d.Event)
	ev := &e.events[len(e.events)-1]
	remembers := e.Ledger != nil && (d.Ban != nil || e.LedgerOfAll && reachedTrigger(ev))
	switch {
	case remembers && e.Ledger.Holds(ev.Probe.Source.Addr()):
		e.hold(ev, d.Ban != nil)
	case d.Ban != nil:
		e.want(ev, *d.Ban)
	case remembers:
		e.remember(ev)
	}
}

// reachedTrigger reports whether ev is about a scan by somebody else.
func reachedTrigger(ev *detector.Event) bool {
	return ev.IsProbe() && ev.Triggered == detector.True && ev.Ignored == detector.False
}

// hold completes the event of a source that was dealt with before.
func (e *enforcer) hold(ev *detector.Event, banned bool) {
	if e.DryRun {
		ev.Reason = "dry run: the source would be banned already"
		return
	}
	ev.Held = true
	if banned {
		ev.Blocked = detector.True
	}
	e.stats.held.Add(1)
}

// want notes that ev waits for a ban, unless there is none to be.
func (e *enforcer) want(ev *detector.Event, ban detector.Ban) {
	if e.Bans != nil {
		ban.Source, _ = e.Bans.Source(ban.Source.Addr()) // Want tells if there is none
	}
	if e.Spared != nil {
		if why, spared := e.Spared(ban.Source); spared {
			ev.Reason = "never banned: " + why
			e.stats.spared.Add(1)
			return
		}
	}
	if index, known := e.adding[ban.Source]; known {
		e.asked = append(e.asked, askedBan{event: len(e.events) - 1, ban: index})
		return
	}
	if e.Bans != nil {
		wanted, err := e.Bans.Want(ban, time.Now())
		switch {
		case errors.Is(err, detector.ErrHeld):
			e.hold(ev, true)
			return
		case err != nil:
			ev.Reason = "not banned: " + err.Error()
			e.stats.refused.Add(1)
			return
		}
		ban = wanted
	}
	if e.Bans != nil || e.Ledger != nil {
		e.adding[ban.Source] = len(e.bans)
	}
	e.asked = append(e.asked, askedBan{event: len(e.events) - 1, ban: len(e.bans), first: true})
	e.bans = append(e.bans, ban)
}

// enforce puts in force what was asked for, and completes the events.
func (e *enforcer) enforce(ctx context.Context) {
	if len(e.bans) == 0 {
		return
	}
	results := e.add(ctx, e.bans)
	for _, asked := range e.asked {
		ev, result := &e.events[asked.event], &results[asked.ban]
		ev.Blocked = detector.TriOf(result.Err == nil && !e.DryRun)
		switch {
		case asked.first:
			ev.Acts = result.Acts
			if result.Err == nil && e.Ledger != nil && !e.DryRun {
				e.remember(ev)
			}
		case result.Err == nil:
			e.hold(ev, true)
		}
		if e.DryRun && asked.first {
			ev.Blocked, ev.Reason = detector.False, e.wouldBan(&e.bans[asked.ban])
		}
	}
	clear(e.adding)
	e.bans, e.asked = e.bans[:0], e.asked[:0]
}

// wouldBan says what a dry run leaves undone.
func (e *enforcer) wouldBan(ban *detector.Ban) string {
	until := "until it is lifted"
	if !ban.Until.IsZero() {
		until = "until " + ban.Until.Format(time.RFC3339)
	}
	return fmt.Sprintf("dry run: %v would be banned %s", ban.Source, until)
}

// add has outputs put bans in force, tells Bans what came of it, and returns that
// for each: nil as its error if any output has.
func (e *enforcer) add(ctx context.Context, bans []detector.Ban) []Result {
	results := make([]Result, len(bans))
	if !e.DryRun {
		e.underWay.Store(&bans)
		results, _ = e.tell(ctx, bans, nil) // the results tell
		defer e.underWay.Store(nil)
	}
	now := time.Now()
	for i := range bans {
		if results[i].Err != nil {
			e.stats.failed.Add(1)
			if e.Bans != nil {
				e.Bans.Fail(bans[i].Source)
			}
			continue
		}
		e.stats.banned.Add(1)
		if e.Bans != nil {
			e.Bans.Confirm(bans[i].Source, now)
		}
	}
	return results
}

// impose puts a ban in force that was decided elsewhere.
func (e *enforcer) impose(ctx context.Context, ban detector.Ban) (detector.Ban, Result, error) {
	e.telling.Lock()
	defer e.telling.Unlock()
	switch {
	case e.Bans == nil:
		return ban, Result{}, ErrNotBanning
	case e.DryRun:
		return ban, Result{}, ErrDryRun
	}
	if e.Spared != nil {
		if why, spared := e.Spared(ban.Source); spared {
			e.stats.spared.Add(1)
			return ban, Result{}, &SparedError{Source: ban.Source, Why: why}
		}
	}
	ban, err := e.Bans.Impose(ban, time.Now())
	if err != nil {
		return ban, Result{}, err
	}
	return ban, e.add(ctx, []detector.Ban{ban})[0], nil
}

// pardon lifts the bans of prefix and of everything inside it, and returns them. An
// error says which output has not carried that out yet.
func (e *enforcer) pardon(ctx context.Context, prefix netip.Prefix) ([]detector.Ban, error) {
	return e.remove(ctx, func(now time.Time) []detector.Ban { return e.Bans.Pardon(prefix, now) })
}

// expire lifts the bans that have ended, and returns them.
func (e *enforcer) expire(ctx context.Context) ([]detector.Ban, error) {
	return e.remove(ctx, e.Bans.Expire)
}

// spare lifts the bans of whom must never be banned by now, and returns them.
func (e *enforcer) spare(ctx context.Context) []detector.Ban {
	if e.Spared == nil {
		return nil
	}
	var lifted []detector.Ban
	for _, ban := range e.Bans.All(time.Now()) {
		why, spared := e.Spared(ban.Source)
		if !spared {
			continue
		}
		e.log.WithField("source", ban.Source).Warn("ban lifted, the source is never to be banned: " + why)
		bans, _ := e.remove(ctx, func(now time.Time) []detector.Ban { return e.Bans.LiftOnly(ban.Source, now) })
		lifted = append(lifted, bans...)
	}
	return lifted
}

// remove has outputs lift what choose takes off the bans. An output that cannot
// is told the whole truth when it works again.
func (e *enforcer) remove(ctx context.Context, choose func(now time.Time) []detector.Ban) ([]detector.Ban, error) {
	e.telling.Lock()
	defer e.telling.Unlock()
	if e.Bans == nil {
		return nil, ErrNotBanning
	}
	bans := choose(time.Now())
	if len(bans) == 0 || e.DryRun {
		return bans, nil
	}
	_, err := e.tell(ctx, nil, bans)
	return bans, err
}

// current returns all that is to be in force: what an output that has just started
// must be told.
func (e *enforcer) current() []detector.Ban {
	if e.Bans == nil || e.DryRun {
		return nil
	}
	// In this order, nothing falls between.
	underWay := e.underWay.Load()
	bans := e.Bans.All(time.Now())
	if underWay != nil {
		bans = append(bans, *underWay...)
	}
	return bans
}

// tell tells every output which bans to add and which to remove, all at the same
// time, and returns what came of each that is added: nil as its error if any
// output has put it in force. The error says which outputs have not done all.
func (e *enforcer) tell(ctx context.Context, add, remove []detector.Ban) ([]Result, error) {
	if err := ctx.Err(); err != nil { // the stop: outputs need not find out one by one
		results := make([]Result, len(add))
		for i := range results {
			results[i].Err = err
		}
		return results, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.Deadline)
	defer cancel()
	answers := make([][]Result, len(e.Outputs))
	faults := make([]error, len(e.Outputs))
	var all sync.WaitGroup
	for i, o := range e.Outputs {
		all.Go(func() { answers[i], faults[i] = change(ctx, o, add, remove) })
	}
	all.Wait()
	fault := errors.Join(faults...)
	e.report(fault)
	for i, err := range faults {
		e.behind[i] = e.behind[i] || err != nil
	}

	results := make([]Result, len(add))
	for i := range results {
		results[i] = merge(answers, i)
	}
	return results, fault
}

// catchUp tells the outputs that are behind all that is to be in force, so that they
// lift what they should have lifted and what only they know of.
func (e *enforcer) catchUp(ctx context.Context) {
	e.telling.Lock()
	defer e.telling.Unlock()
	for i, o := range e.Outputs {
		setter, able := o.Output.(BanSetter)
		if !e.behind[i] || !able {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, e.Deadline)
		_, err := setter.SetBans(ctx, e.current())
		cancel()
		if e.behind[i] = err != nil && !errors.Is(err, ErrNoBans); !e.behind[i] {
			e.log.WithField("output", o.Name).Info("output has the bans as they are to be")
		}
	}
}

// change tells one output, and returns a result for each ban that is added. The
// error is what a log should tell: where there are acts, the event does.
func change(ctx context.Context, o NamedBans, add, remove []detector.Ban) ([]Result, error) {
	results, err := o.Output.ChangeBans(ctx, add, remove)
	if errors.Is(err, ErrNoBans) {
		return nil, nil // it has no say in it
	}
	if err == nil && results != nil && len(results) != len(add) {
		err = errResults
	}
	if err != nil || results == nil {
		results = make([]Result, len(add))
		for i := range results {
			results[i].Err = err
		}
	}
	for i := range results {
		if err == nil && len(results[i].Acts) == 0 {
			err = results[i].Err
		}
	}
	if err != nil {
		err = fmt.Errorf("output %s: %w", o.Name, err)
	}
	return results, err
}

// merge returns what all outputs together made of ban i.
func merge(answers [][]Result, i int) Result {
	merged := Result{Err: errNoOutput}
	for _, results := range answers {
		if results == nil {
			continue
		}
		r := &results[i]
		merged.Acts = append(merged.Acts, r.Acts...)
		if merged.Err != nil {
			merged.Err = r.Err
		}
	}
	return merged
}

// report logs when outputs begin and cease to fail, not each time in between.
func (e *enforcer) report(fault error) {
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
		Spared: e.stats.spared.Load(), Refused: e.stats.refused.Load(), Held: e.stats.held.Load(),
	}
}

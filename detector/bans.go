package detector

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Bans decides who is banned and for how long. It acts on nothing: [Bans.Want]
// and [Bans.Impose] return what outputs must be told, and [Bans.Confirm] or
// [Bans.Fail] tell it what came of that. Only what was confirmed is in force.
// [Bans.Expire] and [Bans.Lift] return what outputs must remove.
//
// It is safe for concurrent use. A caller that tells outputs from several
// goroutines must itself keep what it tells each of them in order.
//
// Every method is told the time. Live callers give [time.Now], whose monotonic
// reading makes a clock that is set harmless: bans neither end early nor last
// longer, and wherever a ban is returned its Until is right by the clock as set.
// Times without that reading are compared as they are.
type Bans struct {
	mu       sync.Mutex // guards all below
	policy   BanPolicy  // with its defaults
	refusals refusals
	sources  sourceTable
	minute   minuteCount
	feed     changeFeed
	stats    BanStats
}

// BanStats are counters of what became of bans since the start, and gauges.
type BanStats struct {
	Bans       int // in force or under way
	Remembered int // sources whose offences are remembered
	Graces     int // sources that are not banned because they were pardoned

	Confirmed, Failed, Ended, Lifted uint64

	RefusedGrace, RefusedTooManyNew, RefusedTooManyBans uint64

	OffencesForgotten, GracesForgotten uint64 // early, because there were too many
}

// NewBans returns no bans, and the policy for those to come.
func NewBans(p BanPolicy) *Bans {
	b := &Bans{sources: newSourceTable()}
	b.SetPolicy(p)
	return b
}

// SetPolicy replaces the policy for bans to come; those in force stay as they are.
func (b *Bans) SetPolicy(p BanPolicy) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.policy = p.withDefaults()
	b.refusals = b.policy.refusals()
	for _, s := range b.sources.all {
		b.sources.file(s, b.policy.Memory) // which may be another
	}
	b.forgetLocked()
}

// Source returns what a ban of addr by the policy keeps out.
func (b *Bans) Source(addr netip.Addr) (netip.Prefix, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.policy.source(host(addr))
}

// Want asks for a ban that the policy is for. It returns the ban as outputs must
// be told it, with Source and Until set; Confirm or Fail must follow. Otherwise
// the error says why there is none: ErrHeld or ErrWanted together with the ban
// that keeps the source out or is under way, ErrGrace, ErrTooManyNew,
// ErrTooManyBans, or ErrNoSource.
func (b *Bans) Want(ban Ban, now time.Time) (Ban, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	source, err := b.policy.source(ban.Source)
	if err != nil {
		return Ban{}, err
	}
	if there, err := b.obstacleLocked(source, now); err != nil {
		return there, err
	}
	if err := b.roomLocked(source); err != nil {
		return Ban{}, err
	}
	if !b.minute.take(now, b.policy.MaxPerMinute) {
		b.stats.RefusedTooManyNew++
		return Ban{}, b.refusals.tooManyNew
	}
	s := b.sources.get(source)
	offences := min(s.offencesAt(now, b.policy.Memory)+1, maxOffences)
	ban.Source, ban.Until = source, b.policy.until(now, offences)
	b.wantLocked(s, ban, offences)
	return ban, nil
}

// obstacleLocked returns why the policy does not ban source.
func (b *Bans) obstacleLocked(source netip.Prefix, now time.Time) (Ban, error) {
	s := b.sources.covering(source, func(s *banSource) bool {
		return s.heldAt(now) || s.wanted != nil || now.Before(s.grace)
	})
	switch {
	case s == nil:
		return Ban{}, nil
	case s.heldAt(now):
		return restated(s.ban, now), ErrHeld
	case s.wanted != nil:
		return restated(s.wanted, now), ErrWanted
	}
	b.stats.RefusedGrace++
	return Ban{}, b.refusals.grace
}

// Impose asks for a ban that was decided elsewhere, by the operator or another
// program. Source is taken as it is (see [Bans.Source]), and so is Until. It is
// no offence, and neither a grace nor MaxPerMinute is in its way. It may make a
// ban longer, never shorter: for that, lift the old one first.
//
// It returns what outputs must be told; Confirm or Fail must follow. Otherwise
// the error is ErrHeld with the ban that keeps the source out at least as long,
// ErrWanted with one that is under way, ErrTooManyBans, ErrEnded, or ErrNoSource.
func (b *Bans) Impose(ban Ban, now time.Time) (Ban, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ban.Source = canonical(ban.Source)
	switch {
	case !ban.Source.IsValid():
		return Ban{}, ErrNoSource
	case !ban.Until.IsZero() && !now.Before(ban.Until):
		return Ban{}, ErrEnded
	}
	s := b.sources.covering(ban.Source, func(s *banSource) bool {
		return s.ban.lasts(ban.Until) || s.wanted.lasts(ban.Until) ||
			s.wanted != nil && s.prefix == ban.Source // whoever confirms must not confirm another
	})
	switch {
	case s == nil:
	case s.ban.lasts(ban.Until):
		return restated(s.ban, now), ErrHeld
	default:
		return restated(s.wanted, now), ErrWanted
	}
	if err := b.roomLocked(ban.Source); err != nil {
		return Ban{}, err
	}
	b.wantLocked(b.sources.get(ban.Source), ban, 0)
	return ban, nil
}

// roomLocked returns an error if there are as many bans as there may be and
// source is not one of them.
func (b *Bans) roomLocked(source netip.Prefix) error {
	if b.sources.len(banEnds) < b.policy.MaxBans {
		return nil
	}
	if s := b.sources.all[source]; s != nil && s.banned() {
		return nil
	}
	b.stats.RefusedTooManyBans++
	return b.refusals.tooManyBans
}

// wantLocked notes that outputs are told of ban. If it is for an offence, it
// makes so many of its source s.
func (b *Bans) wantLocked(s *banSource, ban Ban, offences int) {
	s.wanted, s.wantedFor = &ban, offences
	b.sources.file(s, b.policy.Memory)
}

// Confirm says that the ban of source is in force. It returns false if there is
// none under way: it was lifted or has ended meanwhile, and outputs that keep it
// must be told to remove it.
func (b *Bans) Confirm(source netip.Prefix, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sources.all[source]
	if s == nil || s.wanted == nil {
		return false
	}
	s.ban, s.wanted = s.wanted, nil
	if s.wantedFor > 0 && b.policy.Memory > 0 {
		s.offences, s.since = s.wantedFor, now
		if s.ban.Until.After(now) {
			s.since = s.ban.Until
		}
	}
	b.stats.Confirmed++
	b.changedLocked(s)
	b.forgetLocked()
	return true
}

// Fail says that no output has put the ban of source in force. It counts for
// nothing then: the next probe may lead to it again. An earlier ban that it was to
// make longer stays.
func (b *Bans) Fail(source netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sources.all[source]
	if s == nil || s.wanted == nil {
		return
	}
	s.wanted = nil
	b.stats.Failed++
	b.changedLocked(s)
}

// Holds returns the ban that is in force against addr: of several, the widest.
// It does not allocate.
func (b *Bans) Holds(addr netip.Addr, now time.Time) (Ban, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sources.covering(host(addr), func(s *banSource) bool { return s.heldAt(now) })
	if s == nil {
		return Ban{}, false
	}
	return restated(s.ban, now), true
}

// Expire returns the bans that have ended since the last call, the earliest
// first, and forgets what need not be remembered any longer. It is cheap when
// there is nothing to do: call it every second.
func (b *Bans) Expire(now time.Time) []Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ended []Ban
	for s := b.sources.due(banEnds, now); s != nil; s = b.sources.due(banEnds, now) {
		ended = append(ended, s.end(now))
		b.changedLocked(s)
	}
	b.stats.Ended += uint64(len(ended))
	for _, d := range [...]deadline{memoryEnds, graceEnds} {
		for s := b.sources.due(d, now); s != nil; s = b.sources.due(d, now) {
			b.endLocked(d, s)
		}
	}
	return ended
}

// Lift ends the bans of prefix and of everything inside it, and returns them, by
// source; those under way too, because outputs may know them. A host stands for
// its source ([Bans.Source]). A ban that is wider than that stays, and Holds
// tells. Offences remain: whoever decided has only changed its mind.
func (b *Bans) Lift(prefix netip.Prefix, now time.Time) []Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	named, err := b.policy.source(prefix)
	if err != nil {
		return nil
	}
	var lifted []Ban
	for _, s := range b.sources.inside(named) {
		if s.banned() {
			lifted = append(lifted, b.liftLocked(s, now))
			b.changedLocked(s)
		}
	}
	return lifted
}

// LiftOnly ends the ban of source, as Lift does, and leaves those inside it.
func (b *Bans) LiftOnly(source netip.Prefix, now time.Time) []Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sources.all[canonical(source)]
	if s == nil || !s.banned() {
		return nil
	}
	lifted := []Ban{b.liftLocked(s, now)}
	b.changedLocked(s)
	return lifted
}

// Pardon is what the operator's unban does: it lifts as Lift does, forgets the
// offences, and gives every source that was banned the policy's grace; one that
// is named, as a host is, has it also if it was not banned.
func (b *Bans) Pardon(prefix netip.Prefix, now time.Time) []Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	named, err := b.policy.source(prefix)
	if err != nil {
		return nil
	}
	inside := b.sources.inside(named)
	single := b.policy.isSource(named)
	if single && b.sources.all[named] == nil {
		inside = append(inside, b.sources.get(named)) // its grace is for a ban that may be about to come
	}
	var lifted []Ban
	for _, s := range inside {
		graced := single && s.prefix == named
		if s.banned() {
			lifted = append(lifted, b.liftLocked(s, now))
			graced = true
		}
		s.offences, s.since = 0, time.Time{}
		if graced && b.policy.Grace > 0 {
			s.grace = now.Add(b.policy.Grace)
		}
		b.changedLocked(s)
	}
	b.forgetLocked()
	return lifted
}

// liftLocked ends the ban of s and returns it. Offences fade from now on. The
// caller has to file s.
func (b *Bans) liftLocked(s *banSource, now time.Time) Ban {
	ban := s.end(now)
	if s.since.After(now) {
		s.since = now
	}
	b.stats.Lifted++
	return ban
}

// changedLocked files s anew and notes it for Changes.
func (b *Bans) changedLocked(s *banSource) {
	b.sources.file(s, b.policy.Memory)
	b.feed.note(s.prefix)
}

// forgetLocked has what ends first go where too much is remembered.
func (b *Bans) forgetLocked() {
	for b.sources.len(memoryEnds) > b.policy.MaxBans {
		b.stats.OffencesForgotten++
		b.endLocked(memoryEnds, b.sources.first(memoryEnds))
	}
	for b.sources.len(graceEnds) > b.policy.MaxBans {
		b.stats.GracesForgotten++
		b.endLocked(graceEnds, b.sources.first(graceEnds))
	}
}

// endLocked ends the memory or the grace of s.
func (b *Bans) endLocked(d deadline, s *banSource) {
	if d == memoryEnds {
		s.offences, s.since = 0, time.Time{}
	} else {
		s.grace = time.Time{}
	}
	b.sources.file(s, b.policy.Memory)
	b.feed.note(s.prefix)
}

// All returns the bans in force, by source.
func (b *Bans) All(now time.Time) []Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	bans := make([]Ban, 0, b.sources.len(banEnds))
	for _, s := range b.sources.queues[banEnds].items {
		if s.heldAt(now) {
			bans = append(bans, restated(s.ban, now))
		}
	}
	slices.SortFunc(bans, func(a, b Ban) int { return a.Source.Compare(b.Source) })
	return bans
}

// Stats returns the counters.
func (b *Bans) Stats() BanStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	stats := b.stats
	stats.Bans = b.sources.len(banEnds)
	stats.Remembered = b.sources.len(memoryEnds)
	stats.Graces = b.sources.len(graceEnds)
	return stats
}

// A minuteCount counts what was taken in a minute that begins with the first.
type minuteCount struct {
	began time.Time
	taken int
}

// take reports whether one more is allowed now.
func (m *minuteCount) take(now time.Time, limit int) bool {
	if past := now.Sub(m.began); past < 0 || past >= time.Minute { // below 0: the clock was set back
		*m = minuteCount{began: now}
	}
	if m.taken >= limit {
		return false
	}
	m.taken++
	return true
}

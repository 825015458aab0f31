package detector

import (
	"net/netip"
	"slices"
	"time"
)

// A Standing is what is known of one source, and worth keeping over a restart.
type Standing struct {
	Source   netip.Prefix
	Ban      *Ban      // in force; nil: none
	Offences int       // that make the next ban longer
	Since    time.Time // one of Offences is forgotten each BanPolicy.Memory from then on; zero if there are none
	Grace    time.Time // the policy does not ban the source before then; zero: no grace
}

// Known reports whether there is anything to tell of the source.
func (s *Standing) Known() bool { return s.Ban != nil || s.Offences > 0 || !s.Grace.IsZero() }

// A BanState is what is to be kept of [Bans] over a restart, or what of it has
// changed.
type BanState struct {
	At      time.Time  // when it was made; all other times are by the same clock
	Whole   bool       // Sources are all there are; otherwise those that have changed
	Sources []Standing // by source; one that is not Known is to be forgotten
}

// maxChanged bounds the changes that are noted for Changes. Beyond, all is
// stated.
const maxChanged = 1 << 16

// A changeFeed notes which sources have changed.
type changeFeed struct {
	changed map[netip.Prefix]struct{}
	whole   bool      // there were too many to note, or all have changed
	stated  time.Time // when all was stated for the last time, or the first change
}

func (f *changeFeed) note(source netip.Prefix) {
	switch {
	case f.whole:
	case len(f.changed) >= maxChanged:
		f.restate()
	default:
		if f.changed == nil {
			f.changed = make(map[netip.Prefix]struct{})
		}
		f.changed[source] = struct{}{}
	}
}

// restate has all be stated the next time.
func (f *changeFeed) restate() { f.changed, f.whole = nil, true }

// State returns all that is worth keeping. Use it too after what Changes
// returned could not be saved.
func (b *Bans) State(now time.Time) BanState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stateLocked(now)
}

func (b *Bans) stateLocked(now time.Time) BanState {
	b.feed = changeFeed{stated: now}
	state := BanState{At: now, Whole: true, Sources: make([]Standing, 0, len(b.sources.all))}
	for _, s := range b.sources.all {
		if standing := b.standingLocked(s, now); standing.Known() {
			state.Sources = append(state.Sources, standing)
		}
	}
	return state.sorted()
}

// clockSet is how far a clock must have been set for all to be stated anew.
const clockSet = time.Second

// Changes returns what has changed since State or Changes was last called. If
// the clock was set meanwhile, that is everything, as all times have changed; or
// if more has changed than is noted.
func (b *Bans) Changes(now time.Time) BanState {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.feed.stated.IsZero() {
		b.feed.stated = now
	}
	// Round strips the monotonic reading.
	shift := now.Round(0).Sub(b.feed.stated.Round(0)) - now.Sub(b.feed.stated)
	if b.feed.whole || shift.Abs() > clockSet {
		return b.stateLocked(now)
	}
	state := BanState{At: now, Sources: make([]Standing, 0, len(b.feed.changed))}
	for source := range b.feed.changed {
		standing := Standing{Source: source}
		if s := b.sources.all[source]; s != nil {
			standing = b.standingLocked(s, now)
		}
		state.Sources = append(state.Sources, standing)
	}
	clear(b.feed.changed)
	return state.sorted()
}

func (s BanState) sorted() BanState {
	slices.SortFunc(s.Sources, func(a, b Standing) int { return a.Source.Compare(b.Source) })
	return s
}

// Standing returns what is known of the source that addr belongs to, for an
// operator who asks. Ban is the one that Holds returns, which may be wider.
func (b *Bans) Standing(addr netip.Addr, now time.Time) Standing {
	b.mu.Lock()
	defer b.mu.Unlock()
	source, err := b.policy.source(host(addr))
	if err != nil {
		return Standing{}
	}
	standing := Standing{Source: source}
	if s := b.sources.all[source]; s != nil {
		standing = b.standingLocked(s, now)
	}
	standing.Ban = nil
	if s := b.sources.covering(host(addr), func(s *banSource) bool { return s.heldAt(now) }); s != nil {
		ban := restated(s.ban, now)
		standing.Ban = &ban
	}
	return standing
}

// standingLocked returns what is known of s. Offences that have faded by now are
// not in it, which makes no difference to when the others will.
func (b *Bans) standingLocked(s *banSource, now time.Time) Standing {
	standing := Standing{Source: s.prefix, Grace: onClockOf(s.grace, now)}
	if s.ban != nil {
		ban := restated(s.ban, now)
		standing.Ban = &ban
	}
	if left := s.offencesAt(now, b.policy.Memory); left > 0 {
		faded := time.Duration(s.offences - left)
		standing.Offences = left
		standing.Since = onClockOf(s.since.Add(faded*b.policy.Memory), now)
	}
	return standing
}

// maxAway is how long we are taken to have been away. A clock that shows more
// is not believed, and neither is one that has gone back.
const maxAway = 30 * 24 * time.Hour

// Restore takes over what was kept, into Bans that are new. The time in between
// counts: what has ended comes with the next Expire. But if the clock shows a
// time before the state was made, or more than 30 days after, it is wrong, or was
// then; then everything has as much time left as it had. So a clock that starts
// at 1970 makes no ban longer by more than the time we were away, and none of
// those that start in the far future ends a ban.
//
// It returns how many sources there was no room for, or made no sense.
func (b *Bans) Restore(state BanState, now time.Time) (left int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	clock := now
	if away := now.Round(0).Sub(state.At.Round(0)); away < 0 || away > maxAway {
		clock = state.At
		b.feed.restate()
	}
	for _, s := range state.Sources {
		if !b.restoreLocked(s, clock, now) {
			left++
		}
	}
	b.forgetLocked()
	return left
}

// restoreLocked takes over one source, whose times are as far from now as they
// are from clock.
func (b *Bans) restoreLocked(kept Standing, clock, now time.Time) bool {
	source := canonical(kept.Source)
	if !source.IsValid() || !kept.Known() || kept.Ban != nil && b.roomLocked(source) != nil {
		return false
	}
	moved := func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return now.Add(t.Round(0).Sub(clock.Round(0)))
	}
	s := b.sources.get(source)
	if kept.Ban != nil {
		ban := *kept.Ban
		ban.Source, ban.Until = source, moved(ban.Until)
		s.ban = &ban
	}
	if kept.Offences > 0 && b.policy.Memory > 0 {
		s.offences, s.since = min(kept.Offences, maxOffences), moved(kept.Since)
	}
	s.grace = moved(kept.Grace)
	b.sources.file(s, b.policy.Memory)
	return true
}

package detector

import (
	"container/heap"
	"net/netip"
	"slices"
	"time"
)

// A banSource is what Bans knows of one source.
type banSource struct {
	prefix netip.Prefix

	ban    *Ban // in force until it ends; nil: none
	wanted *Ban // under way: outputs are being told; nil: none

	wantedFor int       // how many offences there are once wanted is in force; 0: it is for none
	offences  int       // that make the next ban longer
	since     time.Time // they fade from then on: the end of the latest ban
	grace     time.Time // no ban by the policy before then; zero: no grace

	// Guarded by the queues: when each deadline is, and where it stands in its
	// queue, counted from 1; 0: there is none.
	at   [deadlines]time.Time
	slot [deadlines]int
}

// heldAt reports whether a ban is in force.
func (s *banSource) heldAt(now time.Time) bool {
	return s.ban != nil && (s.ban.Until.IsZero() || now.Before(s.ban.Until))
}

// banned reports whether a ban is in force or under way.
func (s *banSource) banned() bool { return s.ban != nil || s.wanted != nil }

// end takes the ban away and returns it.
func (s *banSource) end(now time.Time) Ban {
	ban := s.ban
	if ban == nil {
		ban = s.wanted
	}
	s.ban, s.wanted = nil, nil
	return restated(ban, now)
}

// offencesAt returns how many offences are not forgotten at a time.
func (s *banSource) offencesAt(now time.Time, memory time.Duration) int {
	if s.offences == 0 || memory <= 0 {
		return 0
	}
	return s.offences - s.faded(now, memory)
}

// faded returns how many offences are forgotten, at most all.
func (s *banSource) faded(now time.Time, memory time.Duration) int {
	return int(max(0, min(now.Sub(s.since)/memory, time.Duration(s.offences))))
}

// A deadline is one of the things about a source that end.
type deadline int

const (
	banEnds deadline = iota
	memoryEnds
	graceEnds
	deadlines // how many there are
)

// deadline returns when something ends, zero for never, and whether there is
// such a thing.
func (s *banSource) deadline(d deadline, memory time.Duration) (time.Time, bool) {
	switch d {
	case banEnds:
		return s.banEnd(), s.banned()
	case memoryEnds:
		return s.since.Add(time.Duration(s.offences) * max(memory, 0)), s.offences > 0
	default:
		return s.grace, !s.grace.IsZero()
	}
}

// banEnd returns the later end of the ban in force and the one under way, so
// that no ban ends while outputs are told to make it longer.
func (s *banSource) banEnd() time.Time {
	switch {
	case s.wanted == nil && s.ban == nil:
		return time.Time{}
	case s.wanted == nil:
		return s.ban.Until
	case s.ban == nil || endsBefore(s.ban.Until, s.wanted.Until):
		return s.wanted.Until
	}
	return s.ban.Until
}

// endsBefore compares two ends, of which zero is the latest.
func endsBefore(a, b time.Time) bool {
	return !a.IsZero() && (b.IsZero() || a.Before(b))
}

// lasts reports whether there is a ban and it ends no earlier than until.
func (b *Ban) lasts(until time.Time) bool { return b != nil && !endsBefore(b.Until, until) }

// restated returns the ban with its end as the clock of now shows it.
func restated(b *Ban, now time.Time) Ban {
	ban := *b
	ban.Until = onClockOf(ban.Until, now)
	return ban
}

// onClockOf returns t, unless zero, as the clock of now shows it. The two differ
// if the clock was set after t was made and both have a monotonic reading.
func onClockOf(t, now time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return now.Add(t.Sub(now))
}

func host(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	return netip.PrefixFrom(addr, addr.BitLen())
}

// A sourceTable finds sources by address and by what ends next. A source is in
// it as long as anything about it has yet to end.
type sourceTable struct {
	all     map[netip.Prefix]*banSource
	lengths [2]prefixLengths // of IPv4 and IPv6
	queues  [deadlines]deadlineQueue
}

func newSourceTable() sourceTable {
	t := sourceTable{all: make(map[netip.Prefix]*banSource)}
	for d := range t.queues {
		t.queues[d].deadline = deadline(d)
	}
	return t
}

// get returns the source of a prefix. A new one is not in the table until it is
// filed.
func (t *sourceTable) get(prefix netip.Prefix) *banSource {
	if s := t.all[prefix]; s != nil {
		return s
	}
	return &banSource{prefix: prefix}
}

// file puts s where its deadlines belong, or forgets it if it has none.
func (t *sourceTable) file(s *banSource, memory time.Duration) {
	for d := range t.queues {
		at, exists := s.deadline(deadline(d), memory)
		t.queues[d].put(s, at, exists)
	}
	known, listed := s.slot != [deadlines]int{}, t.all[s.prefix] == s
	switch {
	case known && !listed:
		t.all[s.prefix] = s
		t.lengthsOf(s.prefix).add(s.prefix.Bits(), 1)
	case !known && listed:
		delete(t.all, s.prefix)
		t.lengthsOf(s.prefix).add(s.prefix.Bits(), -1)
	}
}

// covering returns the widest source around prefix that is wanted, or nil.
func (t *sourceTable) covering(prefix netip.Prefix, wanted func(*banSource) bool) *banSource {
	addr := prefix.Addr()
	for _, bits := range t.lengthsOf(prefix).sorted {
		if bits > prefix.Bits() {
			break
		}
		around, err := addr.Prefix(bits)
		if err != nil {
			break
		}
		if s := t.all[around]; s != nil && wanted(s) {
			return s
		}
	}
	return nil
}

// inside returns the source of prefix and all inside it, by prefix.
func (t *sourceTable) inside(prefix netip.Prefix) []*banSource {
	var found []*banSource
	sorted := t.lengthsOf(prefix).sorted
	if len(sorted) == 0 || sorted[len(sorted)-1] <= prefix.Bits() { // spares the search, for hosts always
		if s := t.all[prefix]; s != nil {
			found = append(found, s)
		}
		return found
	}
	for _, s := range t.all {
		if s.prefix.Bits() >= prefix.Bits() && prefix.Contains(s.prefix.Addr()) {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b *banSource) int { return a.prefix.Compare(b.prefix) })
	return found
}

func (t *sourceTable) lengthsOf(p netip.Prefix) *prefixLengths {
	if p.Addr().Is4() {
		return &t.lengths[0]
	}
	return &t.lengths[1]
}

func (t *sourceTable) len(d deadline) int { return len(t.queues[d].items) }

// first returns the source whose deadline comes first, or nil.
func (t *sourceTable) first(d deadline) *banSource {
	if t.len(d) == 0 {
		return nil
	}
	return t.queues[d].items[0]
}

// due returns the source whose deadline comes first if that is past, or nil.
func (t *sourceTable) due(d deadline, now time.Time) *banSource {
	s := t.first(d)
	if s == nil || s.at[d].IsZero() || now.Before(s.at[d]) {
		return nil
	}
	return s
}

// prefixLengths are the lengths of prefixes that occur, so that a lookup tries
// only those.
type prefixLengths struct {
	count  [129]int
	sorted []int
}

// add notes one more prefix of a length, or with -1 one less.
func (l *prefixLengths) add(bits, n int) {
	l.count[bits] += n
	i, listed := slices.BinarySearch(l.sorted, bits)
	switch {
	case l.count[bits] > 0 && !listed:
		l.sorted = slices.Insert(l.sorted, i, bits)
	case l.count[bits] == 0 && listed:
		l.sorted = slices.Delete(l.sorted, i, i+1)
	}
}

// A deadlineQueue is a heap of sources by one of their deadlines.
type deadlineQueue struct {
	deadline deadline
	items    []*banSource
}

// put adds s, moves or removes it.
func (q *deadlineQueue) put(s *banSource, at time.Time, exists bool) {
	s.at[q.deadline] = at
	i := s.slot[q.deadline] - 1
	switch {
	case exists && i < 0:
		heap.Push(q, s)
	case exists:
		heap.Fix(q, i)
	case i >= 0:
		heap.Remove(q, i)
	}
}

// Len, Less, Swap, Push and Pop implement [heap.Interface].
func (q *deadlineQueue) Len() int { return len(q.items) }

// Less breaks ties by prefix, so that the same steps always have the same outcome.
func (q *deadlineQueue) Less(i, j int) bool {
	a, b := q.items[i], q.items[j]
	if at, other := a.at[q.deadline], b.at[q.deadline]; !at.Equal(other) {
		return endsBefore(at, other)
	}
	return a.prefix.Compare(b.prefix) < 0
}

func (q *deadlineQueue) Swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	q.items[i].slot[q.deadline], q.items[j].slot[q.deadline] = i+1, j+1
}

func (q *deadlineQueue) Push(x any) {
	s := x.(*banSource)
	q.items = append(q.items, s)
	s.slot[q.deadline] = len(q.items)
}

func (q *deadlineQueue) Pop() any {
	last := len(q.items) - 1
	s := q.items[last]
	q.items[last] = nil
	q.items = q.items[:last]
	s.slot[q.deadline] = 0
	return s
}

package firewall

import (
	"net/netip"
	"slices"
	"time"
)

// customary is the length of prefix by which Portsnare bans IPv6 sources unless
// told otherwise: that of a network behind a router.
const customary = 64

// isFlat reports whether bans of the source's length cannot lie in each other,
// and are kept in a set of their own: hosts, and IPv6's customary networks.
func isFlat(source netip.Prefix) bool {
	return source.IsSingleIP() || source.Addr().Is6() && source.Bits() == customary
}

// A list holds until when sources are banned: masked prefixes, IPv4-mapped ones as
// IPv4. The time is the wall clock's; the zero time is for ever.
type list struct {
	until   map[netip.Prefix]time.Time
	lengths map[bool]*[129]int // how many bans that are not flat have a length; the key says IPv6
}

func newList() *list {
	return &list{
		until:   make(map[netip.Prefix]time.Time),
		lengths: map[bool]*[129]int{false: {}, true: {}},
	}
}

func (l *list) len() int { return len(l.until) }

func (l *list) holds(source netip.Prefix) bool {
	_, ok := l.until[source]
	return ok
}

func (l *list) put(source netip.Prefix, until time.Time) {
	if !l.holds(source) && !isFlat(source) {
		l.lengths[source.Addr().Is6()][source.Bits()]++
	}
	l.until[source] = until
}

func (l *list) drop(source netip.Prefix) {
	if l.holds(source) && !isFlat(source) {
		l.lengths[source.Addr().Is6()][source.Bits()]--
	}
	delete(l.until, source)
}

// dropOver forgets the bans that ended before now, by more than the kernel may be
// late.
func (l *list) dropOver(now time.Time) {
	for source, until := range l.until {
		if lapsed(until, now) {
			l.drop(source)
		}
	}
}

// regions returns, for each of the sources that are about to change, the region
// that the change can touch: the source, or the outermost banned prefix that
// holds it.
func (l *list) regions(sources []netip.Prefix) []netip.Prefix {
	regions := make([]netip.Prefix, len(sources))
	for i, source := range sources {
		regions[i] = source
		if !isFlat(source) {
			regions[i] = l.outermost(source)
		}
	}
	return regions
}

// within returns the bans that regions returned by [list.regions] hold, before
// the change or after it. It looks at all bans only if prefixes lie in prefixes.
func (l *list) within(regions []netip.Prefix) map[netip.Prefix]time.Time {
	bans := make(map[netip.Prefix]time.Time, len(regions))
	crowded := make(map[netip.Prefix]bool)
	for _, region := range regions {
		if !isFlat(region) && l.anyLonger(region) {
			crowded[region] = true
		} else if until, ok := l.until[region]; ok {
			bans[region] = until
		}
	}
	if len(crowded) == 0 {
		return bans
	}
	for source, until := range l.until {
		if !isFlat(source) && anyHolds(crowded, source) {
			bans[source] = until
		}
	}
	return bans
}

// anyHolds reports whether source lies in one of the regions.
func anyHolds(regions map[netip.Prefix]bool, source netip.Prefix) bool {
	for bits := range source.Bits() + 1 {
		if regions[netip.PrefixFrom(source.Addr(), bits).Masked()] {
			return true
		}
	}
	return false
}

// outermost returns the shortest banned prefix that holds source, or source.
func (l *list) outermost(source netip.Prefix) netip.Prefix {
	addr := source.Addr()
	lengths := l.lengths[addr.Is6()]
	for bits := range source.Bits() {
		if lengths[bits] == 0 {
			continue
		}
		outer := netip.PrefixFrom(addr, bits).Masked()
		if _, ok := l.until[outer]; ok {
			return outer
		}
	}
	return source
}

// anyLonger reports whether a prefix that is longer than p is banned, and may
// lie in it.
func (l *list) anyLonger(p netip.Prefix) bool {
	return slices.ContainsFunc(l.lengths[p.Addr().Is6()][p.Bits()+1:], func(n int) bool { return n > 0 })
}

// tolerance is how much the time that the kernel leaves to a ban may differ from
// ours: it counts from another moment and in another unit.
const tolerance = 2 * time.Second

// lapsed reports whether a ban until then is over, in the kernel too.
func lapsed(until, now time.Time) bool {
	return !until.IsZero() && now.Sub(until) > tolerance
}

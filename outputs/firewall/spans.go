package firewall

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// A span is a range of addresses of one family, both ends included.
type span struct{ first, last netip.Addr }

// flatten turns banned prefixes, of which some may lie in others, into spans
// that do not overlap: an address is banned until the latest end of the
// prefixes that hold it. When a span's time is over, what is left is what
// flatten would return then; so the kernel can be left to end them.
func flatten(bans map[netip.Prefix]time.Time) map[span]time.Time {
	spans := make(map[span]time.Time, len(bans))
	var open []openSpan // those that hold the current prefix, the outermost first
	emit := func(first, last netip.Addr, until time.Time) {
		if first.IsValid() && first.Compare(last) <= 0 {
			spans[span{first, last}] = until
		}
	}
	closeInner := func() {
		inner := open[len(open)-1]
		emit(inner.next, inner.last, inner.until)
		open = open[:len(open)-1]
		if len(open) > 0 {
			open[len(open)-1].next = inner.last.Next()
		}
	}

	// In this order a prefix comes before those that lie in it.
	for _, source := range slices.SortedFunc(maps.Keys(bans), netip.Prefix.Compare) {
		until := bans[source]
		for len(open) > 0 && open[len(open)-1].last.Compare(source.Addr()) < 0 {
			closeInner()
		}
		if len(open) > 0 {
			outer := open[len(open)-1]
			if !later(until, outer.until) {
				continue // it adds nothing
			}
			emit(outer.next, source.Addr().Prev(), outer.until)
		}
		open = append(open, openSpan{source.Addr(), lastOf(source), until})
	}
	for len(open) > 0 {
		closeInner()
	}
	return spans
}

// An openSpan is what is left of a prefix behind the spans that lie in it.
type openSpan struct {
	next, last netip.Addr // next is invalid behind the last address there is
	until      time.Time
}

// later reports whether a ban until a lasts longer than one until b. The zero
// time is never.
func later(a, b time.Time) bool {
	if a.IsZero() || b.IsZero() {
		return a.IsZero() && !b.IsZero()
	}
	return a.After(b)
}

// lastOf returns the last address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

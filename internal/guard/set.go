package guard

import (
	"cmp"
	"net/netip"
	"slices"
)

// An Entry is a prefix that must not be banned, and why.
type Entry struct {
	Prefix netip.Prefix // masked; an IPv4-mapped one is IPv4
	Why    string       // a phrase for logs, such as "gateway"
}

// A set is entries that answer whether a prefix overlaps any. It is immutable.
//
// Two prefixes are either disjoint or one holds the other. So a set leaves out
// what another of its entries holds, and what is left can be put in order.
type set []Entry

// newSet returns the set of entries. Of two for the same prefix the first
// stays; an invalid prefix is left out.
func newSet(entries []Entry) set {
	sorted := make(set, 0, len(entries))
	for _, e := range entries {
		if e.Prefix = canonical(e.Prefix); e.Prefix.IsValid() {
			sorted = append(sorted, e)
		}
	}
	slices.SortStableFunc(sorted, func(a, b Entry) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	outermost := sorted[:0]
	for _, e := range sorted {
		if n := len(outermost); n == 0 || !outermost[n-1].Prefix.Overlaps(e.Prefix) {
			outermost = append(outermost, e)
		}
	}
	return outermost
}

// overlapping returns an entry that holds p or that p holds. p is canonical.
func (s set) overlapping(p netip.Prefix) (Entry, bool) {
	next, _ := slices.BinarySearchFunc(s, p.Addr(), func(e Entry, addr netip.Addr) int {
		return e.Prefix.Addr().Compare(addr)
	})
	// What holds p starts at p's start or is the last entry that starts before.
	// What p holds starts at p's start or after, the first such one included.
	for i := max(next-1, 0); i <= next && i < len(s); i++ {
		if s[i].Prefix.Overlaps(p) {
			return s[i], true
		}
	}
	return Entry{}, false
}

// canonical masks p and makes IPv4 of an IPv4-mapped one. It returns the zero
// Prefix if p is invalid.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// hostPrefix returns the prefix that holds addr alone.
func hostPrefix(addr netip.Addr) netip.Prefix {
	return netip.PrefixFrom(addr, addr.BitLen())
}

// The phrases of [Entry.Why].
const (
	whyUnspecified = "unspecified"
	whyLoopback    = "loopback"
	whyLinkLocal   = "link-local"
	whyMulticast   = "multicast"
	whyBroadcast   = "broadcast"
	whyAllIPv4     = "all of IPv4"

	whyOwn      = "own address"
	whyGateway  = "gateway"
	whyResolver = "DNS resolver"

	whySession       = "peer of an SSH session"
	whyRecentSession = "recent peer of an SSH session"

	whyAllowed = "on the allow list"
)

// fixedSet is what no host may ban.
var fixedSet = newSet([]Entry{
	{netip.MustParsePrefix("0.0.0.0/8"), whyUnspecified},
	{netip.MustParsePrefix("127.0.0.0/8"), whyLoopback},
	{netip.MustParsePrefix("169.254.0.0/16"), whyLinkLocal},
	{netip.MustParsePrefix("224.0.0.0/4"), whyMulticast},
	{netip.MustParsePrefix("255.255.255.255/32"), whyBroadcast},
	{netip.MustParsePrefix("::/128"), whyUnspecified},
	{netip.MustParsePrefix("::1/128"), whyLoopback},
	// Without the neighbours' and routers' link-local addresses IPv6 is dead.
	{netip.MustParsePrefix("fe80::/10"), whyLinkLocal},
	{netip.MustParsePrefix("ff00::/8"), whyMulticast},
	// An IPv4-mapped ban is looked up as IPv4, so this hits only an IPv6 prefix
	// so short that it holds all mapped addresses. One bit more would make the
	// entry itself IPv4; the other half of it is in no use.
	{netip.MustParsePrefix("::fffe:0:0/95"), whyAllIPv4},
})

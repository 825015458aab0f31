package detector

import (
	"maps"
	"net/netip"
	"slices"
)

// A PrefixSet is a set of address prefixes that answers whether an address
// lies in any of them. The zero value is empty. It is immutable, so copies may
// be shared between goroutines.
type PrefixSet struct {
	prefixes map[netip.Prefix]struct{}
	bits4    []int // the prefix lengths that occur, so that a lookup tries only those
	bits6    []int
}

// NewPrefixSet returns the set of prefixes. Host bits are masked off, and an
// IPv4-mapped prefix of 96 bits or more is the IPv4 prefix it holds.
func NewPrefixSet(prefixes ...netip.Prefix) PrefixSet {
	s := PrefixSet{prefixes: make(map[netip.Prefix]struct{}, len(prefixes))}
	for _, p := range prefixes {
		p = canonical(p)
		if !p.IsValid() {
			continue
		}
		s.prefixes[p] = struct{}{}
		lengths := &s.bits6
		if p.Addr().Is4() {
			lengths = &s.bits4
		}
		if !slices.Contains(*lengths, p.Bits()) {
			*lengths = append(*lengths, p.Bits())
		}
	}
	return s
}

// canonical returns p without host bits, and as IPv4 if it is IPv4-mapped.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// Contains reports whether addr lies in one of the prefixes. A zone does not
// matter; an IPv4-mapped address is looked up as IPv4.
func (s PrefixSet) Contains(addr netip.Addr) bool {
	if len(s.prefixes) == 0 {
		return false
	}
	addr = addr.Unmap()
	lengths := s.bits6
	if addr.Is4() {
		lengths = s.bits4
	}
	for _, n := range lengths {
		p, err := addr.Prefix(n) // drops the zone
		if err != nil {
			continue
		}
		if _, ok := s.prefixes[p]; ok {
			return true
		}
	}
	return false
}

// Prefixes returns the prefixes, IPv4 first, by address and length.
func (s PrefixSet) Prefixes() []netip.Prefix {
	return slices.SortedFunc(maps.Keys(s.prefixes), netip.Prefix.Compare)
}

// Len returns the number of prefixes.
func (s PrefixSet) Len() int { return len(s.prefixes) }

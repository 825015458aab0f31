package detector

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// A PortRange is the ports First to Last, both included.
type PortRange struct{ First, Last uint16 }

// A PortSet is a set of ports. The zero value is empty. It is immutable, so
// copies may be shared between goroutines.
type PortSet struct {
	ranges []PortRange      // sorted, disjoint, not adjacent
	bits   *[1 << 10]uint64 // one bit a port; nil when empty
}

// NewPortSet returns the union of ranges. A range whose First is above its
// Last is empty.
func NewPortSet(ranges ...PortRange) PortSet {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	var s PortSet
	for _, r := range sorted {
		if r.First > r.Last {
			continue
		}
		if n := len(s.ranges); n > 0 && uint32(r.First) <= uint32(s.ranges[n-1].Last)+1 {
			s.ranges[n-1].Last = max(s.ranges[n-1].Last, r.Last)
			continue
		}
		s.ranges = append(s.ranges, r)
	}
	if len(s.ranges) == 0 {
		return PortSet{}
	}
	s.bits = new([1 << 10]uint64)
	for _, r := range s.ranges {
		for p := uint32(r.First); p <= uint32(r.Last); p++ {
			s.bits[p>>6] |= 1 << (p & 63)
		}
	}
	return s
}

// Contains reports whether port is in the set.
func (s PortSet) Contains(port uint16) bool {
	return s.bits != nil && s.bits[port>>6]&(1<<(port&63)) != 0
}

// Ranges returns the set as sorted ranges that neither overlap nor touch. The
// caller must not change them.
func (s PortSet) Ranges() []PortRange { return s.ranges }

// Len returns the number of ports.
func (s PortSet) Len() int {
	n := 0
	for _, r := range s.ranges {
		n += int(r.Last) - int(r.First) + 1
	}
	return n
}

// String returns the set in the form of a configuration file: "1,7,512-515".
func (s PortSet) String() string {
	var b strings.Builder
	for i, r := range s.ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(r.First)))
		if r.Last != r.First {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(r.Last)))
		}
	}
	return b.String()
}

package guard

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// entriesOf makes one of each prefix, with itself for a reason.
func entriesOf(prefixes ...string) []Entry {
	entries := make([]Entry, len(prefixes))
	for i, p := range prefixes {
		entries[i] = Entry{netip.MustParsePrefix(p), p}
	}
	return entries
}

func TestSetOverlapping(t *testing.T) {
	tests := map[string]struct {
		set  []Entry
		ban  string
		want string // Why, or none
	}{
		"nothing":                     {nil, "192.0.2.1/32", ""},
		"the same host":               {entriesOf("192.0.2.1/32"), "192.0.2.1/32", "192.0.2.1/32"},
		"the host before":             {entriesOf("192.0.2.1/32"), "192.0.2.0/32", ""},
		"the host after":              {entriesOf("192.0.2.1/32"), "192.0.2.2/32", ""},
		"a host in a prefix":          {entriesOf("192.0.2.0/24"), "192.0.2.77/32", "192.0.2.0/24"},
		"the first host of a prefix":  {entriesOf("192.0.2.0/24"), "192.0.2.0/32", "192.0.2.0/24"},
		"the last host of a prefix":   {entriesOf("192.0.2.0/24"), "192.0.2.255/32", "192.0.2.0/24"},
		"a prefix around a host":      {entriesOf("192.0.2.77/32"), "192.0.2.0/24", "192.0.2.77/32"},
		"a prefix that ends with one": {entriesOf("192.0.2.255/32"), "192.0.2.0/24", "192.0.2.255/32"},
		"a prefix that starts so":     {entriesOf("192.0.2.0/32"), "192.0.2.0/24", "192.0.2.0/32"},
		"host bits in a ban":          {entriesOf("192.0.2.1/32"), "192.0.2.200/24", "192.0.2.1/32"},
		"host bits in an entry":       {entriesOf("192.0.2.200/24"), "192.0.2.1/32", "192.0.2.200/24"},
		"a prefix in a prefix":        {entriesOf("2001:db8::/32"), "2001:db8:1::/64", "2001:db8::/32"},
		"an IPv6 /64 around a host":   {entriesOf("2001:db8::1/128"), "2001:db8::/64", "2001:db8::1/128"},
		"the next IPv6 /64":           {entriesOf("2001:db8::1/128"), "2001:db8:0:1::/64", ""},
		"all of IPv4":                 {entriesOf("192.0.2.1/32"), "0.0.0.0/0", "192.0.2.1/32"},
		"all of the other family":     {entriesOf("192.0.2.1/32"), "::/0", ""},
		"an IPv4-mapped host":         {entriesOf("192.0.2.0/24"), "::ffff:192.0.2.1/128", "192.0.2.0/24"},
		"an IPv4-mapped prefix":       {entriesOf("192.0.2.1/32"), "::ffff:192.0.2.0/120", "192.0.2.1/32"},
		"an IPv4-mapped entry":        {entriesOf("::ffff:192.0.2.0/120"), "192.0.2.1/32", "::ffff:192.0.2.0/120"},
		"behind a nested entry":       {entriesOf("192.0.2.0/24", "192.0.2.1/32"), "192.0.2.9/32", "192.0.2.0/24"},
		"the same prefix twice":       {append(entriesOf("192.0.2.0/24"), Entry{netip.MustParsePrefix("192.0.2.0/24"), "later"}), "192.0.2.1/32", "192.0.2.0/24"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, got := newSet(tt.set).overlapping(canonical(netip.MustParsePrefix(tt.ban)))
			if e.Why != tt.want || got != (tt.want != "") {
				t.Errorf("%s overlaps %q (%v), want %q", tt.ban, e.Why, got, tt.want)
			}
		})
	}
}

func TestNewSetIsSortedAndDisjoint(t *testing.T) {
	got := newSet(append(entriesOf("2001:db8::/32", "203.0.113.0/24", "192.0.2.1/32", "192.0.2.0/24", "203.0.113.0/25"), Entry{}))
	want := set(entriesOf("192.0.2.0/24", "203.0.113.0/24", "2001:db8::/32"))
	if diff := cmp.Diff(want, got, comparePrefixes); diff != "" {
		t.Errorf("set (-want +got):\n%s", diff)
	}
}

// TestSetAgainstNaive asks random sets about a million random bans, in a corner
// of each family that is small enough for many of them to meet.
func TestSetAgainstNaive(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 25_000 {
		entries := make([]Entry, random.IntN(12))
		for i := range entries {
			entries[i].Prefix = randomPrefix(random)
		}
		s := newSet(entries)
		for range 40 {
			ban := randomPrefix(random)
			want := false
			for _, e := range entries {
				want = want || naiveOverlap(e.Prefix, ban)
			}
			if _, got := s.overlapping(canonical(ban)); got != want {
				t.Fatalf("%v overlaps %v: %v, want %v", ban, entries, got, want)
			}
		}
	}
}

func randomPrefix(random *rand.Rand) netip.Prefix {
	low := [2]byte{byte(random.Uint32()) & 3, byte(random.Uint32())}
	switch random.IntN(3) {
	case 0:
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, low[0], low[1]}), random.IntN(33))
	case 1:
		mapped := netip.AddrFrom4([4]byte{198, 51, low[0], low[1]}).As16()
		return netip.PrefixFrom(netip.AddrFrom16(mapped), 96+random.IntN(33))
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 14: low[0], 15: low[1]}), random.IntN(129))
}

// naiveOverlap compares bit by bit as far as the shorter prefix goes.
func naiveOverlap(a, b netip.Prefix) bool {
	aAddr, aBits := unmap(a)
	bAddr, bBits := unmap(b)
	if aAddr.Is4() != bAddr.Is4() {
		return false
	}
	aBytes, bBytes := aAddr.AsSlice(), bAddr.AsSlice()
	for i := range min(aBits, bBits) {
		if (aBytes[i/8]^bBytes[i/8])&(0x80>>(i%8)) != 0 {
			return false
		}
	}
	return true
}

func unmap(p netip.Prefix) (netip.Addr, int) {
	if p.Addr().Is4In6() {
		return p.Addr().Unmap(), p.Bits() - 96
	}
	return p.Addr(), p.Bits()
}

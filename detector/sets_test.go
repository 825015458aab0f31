package detector

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPortSet(t *testing.T) {
	tests := map[string]struct {
		in   []PortRange
		want string
		len  int
	}{
		"empty":       {nil, "", 0},
		"single":      {[]PortRange{{80, 80}}, "80", 1},
		"unsorted":    {[]PortRange{{80, 80}, {1, 3}}, "1-3,80", 4},
		"overlapping": {[]PortRange{{1, 10}, {5, 20}, {7, 8}}, "1-20", 20},
		"touching":    {[]PortRange{{1, 10}, {11, 20}}, "1-20", 20},
		"whole range": {[]PortRange{{0, 65535}}, "0-65535", 65536},
		"up to 65535": {[]PortRange{{65535, 65535}, {65000, 65534}}, "65000-65535", 536},
		"backwards":   {[]PortRange{{5, 1}}, "", 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := NewPortSet(test.in...)
			if s.String() != test.want || s.Len() != test.len {
				t.Errorf("NewPortSet(%v) = %q with %d ports, want %q with %d", test.in, s, s.Len(), test.want, test.len)
			}
			if diff := cmp.Diff(member(test.in), members(s)); diff != "" {
				t.Errorf("members: (-want +got)\n%s", diff)
			}
		})
	}
}

// member lists the ports of ranges the slow way.
func member(ranges []PortRange) (ports []uint16) {
	for p := range 1 << 16 {
		for _, r := range ranges {
			if int(r.First) <= p && p <= int(r.Last) {
				ports = append(ports, uint16(p))
				break
			}
		}
	}
	return ports
}

func members(s PortSet) (ports []uint16) {
	for p := range 1 << 16 {
		if s.Contains(uint16(p)) {
			ports = append(ports, uint16(p))
		}
	}
	return ports
}

func TestPrefixSet(t *testing.T) {
	s := NewPrefixSet(
		netip.MustParsePrefix("192.0.2.5/24"), // host bits do not matter
		netip.MustParsePrefix("198.51.100.7/32"),
		netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("::ffff:203.0.113.0/120"), // 203.0.113.0/24
	)
	for addr, want := range map[string]bool{
		"192.0.2.0": true, "192.0.2.255": true, "192.0.3.0": false,
		"198.51.100.7": true, "198.51.100.8": false,
		"203.0.113.9": true, "::ffff:192.0.2.1": true,
		"2001:db8:1::1": true, "2001:db9::1": false, "2001:db8::1%eth0": true,
	} {
		if got := s.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Contains(%s) = %v, want %v", addr, got, want)
		}
	}
	want := "[192.0.2.0/24 198.51.100.7/32 203.0.113.0/24 2001:db8::/32]"
	if got := fmt.Sprint(s.Prefixes()); got != want {
		t.Errorf("Prefixes() = %s, want %s", got, want)
	}
	if (PrefixSet{}).Contains(netip.MustParseAddr("192.0.2.1")) {
		t.Error("the empty set contains an address")
	}
	if all := NewPrefixSet(netip.MustParsePrefix("0.0.0.0/0")); !all.Contains(netip.MustParseAddr("192.0.2.1")) || all.Contains(netip.MustParseAddr("::1")) {
		t.Error("0.0.0.0/0 should be all of IPv4 and nothing of IPv6")
	}
}

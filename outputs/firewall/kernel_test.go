package firewall

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// kernel holds what programs of others say that the kernel keeps out.
type kernel map[span]time.Duration

// add enters a span that is kept out. It may be in several sets.
func (k kernel) add(s span, left time.Duration) {
	if old, ok := k[s]; !ok || left == forever || old != forever && old < left {
		k[s] = left
	}
}

// left returns how long an address stays banned: 0 if it is not.
func (k kernel) left(a netip.Addr) time.Duration {
	var longest time.Duration
	for s, left := range k {
		if s.first.Compare(a) > 0 || s.last.Compare(a) < 0 {
			continue
		}
		if left == forever {
			return forever
		}
		longest = max(longest, left)
	}
	return longest
}

// readNFT returns what nft says of our sets in a table.
func readNFT(t testing.TB, table string) kernel {
	t.Helper()
	k := make(kernel)
	for _, kind := range setKinds {
		text := run(t, "nft", append(append([]string{"-j", "list", "set"}, strings.Fields(table)...), kind.name)...)
		var list struct {
			NFTables []struct {
				Set struct{ Elem []json.RawMessage }
			}
		}
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		for _, object := range list.NFTables {
			for _, text := range object.Set.Elem {
				s, left := parseElement(t, text)
				if kind.bits == customary {
					s.last = lastOf(netip.PrefixFrom(s.first, customary))
				}
				k.add(s, left)
			}
		}
	}
	return k
}

// parseElement reads an element in nft's JSON: an address, a prefix or a range,
// alone or with times.
func parseElement(t testing.TB, text json.RawMessage) (span, time.Duration) {
	t.Helper()
	var e struct {
		Elem struct {
			Val     json.RawMessage
			Expires int64
			Timeout int64
		}
		Prefix struct {
			Addr netip.Addr
			Len  int
		}
		Range []netip.Addr
	}
	var addr netip.Addr
	if json.Unmarshal(text, &addr) == nil {
		return span{addr, addr}, forever
	}
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatalf("element %s: %v", text, err)
	}
	switch {
	case e.Elem.Val != nil:
		s, _ := parseElement(t, e.Elem.Val)
		if e.Elem.Timeout == 0 {
			return s, forever
		}
		return s, time.Duration(e.Elem.Expires) * time.Second
	case e.Range != nil:
		return span{e.Range[0], e.Range[1]}, forever
	}
	p := netip.PrefixFrom(e.Prefix.Addr, e.Prefix.Len)
	return span{p.Addr(), lastOf(p)}, forever
}

// readIPSet returns what ipset says of our sets.
func readIPSet(t testing.TB) kernel {
	t.Helper()
	k := make(kernel)
	for line := range strings.Lines(sh(t, "ipset save portsnare4; ipset save portsnare6")) {
		f := strings.Fields(line)
		if f[0] != "add" {
			continue
		}
		p, err := netip.ParsePrefix(f[2])
		if err != nil {
			a := netip.MustParseAddr(f[2])
			p = netip.PrefixFrom(a, a.BitLen())
		}
		left, err := time.ParseDuration(f[4] + "s")
		if err != nil {
			t.Fatalf("ipset says %q", line)
		}
		if left == 0 {
			left = forever
		}
		k.add(span{p.Addr(), lastOf(p)}, left)
	}
	return k
}

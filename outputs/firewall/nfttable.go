package firewall

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What is made in the kernel:
//
//	table inet portsnare {
//		set banned4      { type ipv4_addr; flags timeout; }
//		set banned4_nets { type ipv4_addr; flags interval,timeout; }
//		set banned6      { type ipv6_addr; flags timeout; }
//		set banned6_64   { type ipv6_addr; flags timeout; }
//		set banned6_nets { type ipv6_addr; flags interval,timeout; }
//		chain prerouting {
//			type filter hook prerouting priority -450; policy accept;
//			ip saddr @banned4 counter drop
//			…
//		}
//	}
//
// Bans that come by the thousand have hash tables: hosts, and IPv6's customary
// networks by their first address. Those take any element in constant time. An
// interval set is a tree, in which each transaction walks over all elements and
// which takes no overlaps, so other prefixes are flattened first.

// A setKind says what one of the sets holds.
type setKind struct {
	name string
	ipv6 bool
	bits int // the length of its prefixes; 0: any, as intervals
}

var setKinds = [...]setKind{
	{"banned4", false, 32},
	{"banned4_nets", false, 0},
	{"banned6", true, 128},
	{"banned6_64", true, customary},
	{"banned6_nets", true, 0},
}

// holds reports whether bans of source go into the set.
func (k setKind) holds(source netip.Prefix) bool {
	if k.ipv6 != source.Addr().Is6() {
		return false
	}
	return k.bits == source.Bits() || k.bits == 0 && !isFlat(source)
}

// elements holds what each of the sets is to hold until when. Of a set that
// holds no intervals, a span is one address.
type elements [len(setKinds)]map[span]time.Time

func elementsOf(bans map[netip.Prefix]time.Time) elements {
	var sorted [len(setKinds)]map[netip.Prefix]time.Time
	for i := range sorted {
		sorted[i] = make(map[netip.Prefix]time.Time)
	}
	for source, until := range bans {
		i := slices.IndexFunc(setKinds[:], func(k setKind) bool { return k.holds(source) })
		sorted[i][source] = until
	}
	var e elements
	for i, k := range setKinds {
		if k.bits == 0 {
			e[i] = flatten(sorted[i])
			continue
		}
		e[i] = make(map[span]time.Time, len(sorted[i]))
		for source, until := range sorted[i] {
			e[i][span{source.Addr(), source.Addr()}] = until
		}
	}
	return e
}

// An nftTable says what is to be made in nftables, or where.
type nftTable struct {
	table    *nftables.Table
	setsOnly bool                         // the table is the administrator's: only its sets are ours
	sets     [len(setKinds)]*nftables.Set // like setKinds
	rules    [len(setKinds)][]expr.Any    // like setKinds
	chains   []*nftables.Chain
}

func newNFTTable(s settings) *nftTable {
	t := &nftTable{table: &s.table, setsOnly: s.SetsOnly}
	for i, k := range setKinds {
		t.sets[i] = &nftables.Set{
			Table:      t.table,
			Name:       k.name,
			ID:         uint32(i) + 1,
			KeyType:    nftables.TypeIPAddr,
			Interval:   k.bits == 0,
			HasTimeout: true,
		}
		if k.ipv6 {
			t.sets[i].KeyType = nftables.TypeIP6Addr
		}
		t.rules[i] = k.rule()
	}
	for _, name := range hooks(s.Hook) {
		t.chains = append(t.chains, &nftables.Chain{
			Table:    t.table,
			Name:     name,
			Hooknum:  hookNumbers[name],
			Priority: new(nftables.ChainPriority(*s.Priority)),
			Type:     nftables.ChainTypeFilter,
			Policy:   new(nftables.ChainPolicyAccept),
		})
	}
	return t
}

var hookNumbers = map[string]*nftables.ChainHook{
	prerouting: nftables.ChainHookPrerouting,
	input:      nftables.ChainHookInput,
	forward:    nftables.ChainHookForward,
}

// rule returns the rule that drops what comes from the set.
func (k setKind) rule() []expr.Any {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if k.ipv6 {
		family, offset, length = unix.NFPROTO_IPV6, 8, 16
	}
	rule := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{
			OperationType: expr.PayloadLoad, DestRegister: 1,
			Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length,
		},
	}
	if k.bits != 0 && k.bits != int(8*length) {
		rule = append(rule, &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: length,
			Mask: net.CIDRMask(k.bits, int(8*length)), Xor: make([]byte, length),
		})
	}
	return append(rule,
		&expr.Lookup{SourceRegister: 1, SetName: k.name},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop})
}

// name returns what nft calls the table.
func (t *nftTable) name() string { return familyName(t.table.Family) + " " + t.table.Name }

// declaration returns what declares a set in nft's language.
func declaration(s *nftables.Set) string {
	flags := "timeout"
	if s.Interval {
		flags = "interval, timeout"
	}
	return "set " + s.Name + " { type " + s.KeyType.Name + "; flags " + flags + "; }"
}

package capture

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/portsnare/portsnare/detector"
)

// pair is two addresses that exchanged packets, the lower one first, in a form
// without pointers, which spares the garbage collector a look at each.
type pair [2][16]byte

func (p pair) addr(i int) netip.Addr { return netip.AddrFrom16(p[i]).Unmap() }

// exchange counts what the two addresses of a pair sent each other.
type exchange struct {
	packets uint64
	ways    [2]oneWay // from the lower to the higher address, and back
}

type oneWay struct {
	segments  uint64 // TCP segments that can be probes
	accepts   uint64 // SYN-ACKs, the answers to segments of the other way
	datagrams uint64
}

func (e *exchange) add(p *detector.Probe, way int) {
	e.packets++
	w := &e.ways[way]
	switch {
	case p.Proto == detector.UDP:
		w.datagrams++
	case isProbe(p):
		w.segments++
	case p.Header.Flags.Has(detector.SYN | detector.ACK):
		w.accepts++
	}
}

// tries returns how much of what was sent one way can be probes, and how much
// of that got no answer.
func (e *exchange) tries(way int) (tries, unanswered int64) {
	there, back := e.ways[way], e.ways[1-way]
	tries = int64(there.segments + there.datagrams)
	unanswered = int64(there.segments - min(there.segments, back.accepts))
	if back.datagrams == 0 {
		unanswered += int64(there.datagrams)
	}
	return tries, unanswered
}

// account is what an address took part in.
type account struct {
	packets                    int64
	sent, received             int64 // what can be probes
	vainlySent, vainlyReceived int64 // of these, without an answer
}

// isScanner reports whether most of what the address tried was in vain, and
// more than what others tried there.
func (a *account) isScanner() bool {
	return a.vainlySent > a.vainlyReceived && 2*a.vainlySent > a.sent
}

// accounts has the account of each address in a set of pairs.
type accounts map[netip.Addr]*account

// add enters what the two addresses of p exchanged, n times; -1 takes it back.
func (as accounts) add(p pair, e *exchange, n int64) {
	for i := range p {
		a := as.of(p.addr(i))
		received, vainlyReceived := e.tries(1 - i)
		if p[0] == p[1] { // a host talking to itself is probed, and no scanner
			received, vainlyReceived = e.tries(0)
		}
		a.packets += n * int64(e.packets)
		a.received += n * received
		a.vainlyReceived += n * vainlyReceived
		if p[0] == p[1] {
			return
		}
		sent, vainlySent := e.tries(i)
		a.sent += n * sent
		a.vainlySent += n * vainlySent
	}
}

func (as accounts) of(addr netip.Addr) *account {
	a := as[addr]
	if a == nil {
		a = new(account)
		as[addr] = a
	}
	return a
}

// workOutLocal returns the host's own addresses, sorted, in the way that
// [Inspect] describes. It takes pairs apart.
func workOutLocal(pairs map[pair]*exchange) []netip.Addr {
	as := make(accounts)
	for p, e := range pairs {
		as.add(p, e, 1)
	}
	scanners := make(map[netip.Addr]bool)
	for addr, a := range as {
		if a.isScanner() {
			scanners[addr] = true
		}
	}

	var local []netip.Addr
	var found4, found6 bool
	for len(local) < maxLocal {
		next := as.busiest(func(addr netip.Addr, a *account) bool {
			first := addr.Is4() && !found4 || addr.Is6() && !found6
			return !scanners[addr] && (first || a.vainlyReceived > a.vainlySent)
		})
		if !next.IsValid() {
			break
		}
		local = append(local, next)
		found4, found6 = found4 || next.Is4(), found6 || next.Is6()
		for p, e := range pairs {
			if p.addr(0) == next || p.addr(1) == next {
				as.add(p, e, -1)
				delete(pairs, p)
			}
		}
	}
	slices.SortFunc(local, netip.Addr.Compare)
	return local
}

// busiest returns the address that takes part in most packets among those that
// may be taken, or the zero address. A map has no order, so every tie must be
// broken.
func (as accounts) busiest(may func(netip.Addr, *account) bool) netip.Addr {
	var best netip.Addr
	var of *account
	for addr, a := range as {
		if a.packets == 0 || !may(addr, a) {
			continue
		}
		if of == nil || a.busier(of) > 0 || a.busier(of) == 0 && addr.Less(best) {
			best, of = addr, a
		}
	}
	return best
}

// busier compares by packets, and then by how much more others tried there.
func (a *account) busier(b *account) int {
	return cmp.Or(
		cmp.Compare(a.packets, b.packets),
		cmp.Compare(a.received-a.sent, b.received-b.sent),
	)
}

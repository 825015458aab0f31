package capture

import (
	"net/netip"
	"time"

	"github.com/portsnare/portsnare/detector"
)

// requestMemory is how long an answer may take: as long as a NAT has to let it
// in (RFC 4787, REQ-5). Whoever asked has given up long before.
const requestMemory = 2 * time.Minute

// Each set holds the requests from a few ports, so that however many a host
// sends from one port, those from nearly all others are remembered.
const (
	requestSets    = 256
	requestsPerSet = 16
)

// requests remembers the datagrams that this host sent, so that their answers
// are not taken for probes, even when the socket has long been closed. In a full
// set the oldest request is forgotten. Only what the host sends enters it and
// keeps it there; what strangers send changes nothing.
type requests struct {
	sets [requestSets][requestsPerSet]request
}

// A request is known by its ends, without zones. A request to many hosts is
// answered from their own addresses, and to any of ours: its ends are the
// unspecified address with the two ports.
type request struct {
	local, remote netip.AddrPort
	at            time.Time // of the latest
}

// age counts a clock that was set back as time gone by.
func (q *request) age(now time.Time) time.Duration { return now.Sub(q.at).Abs() }

func (r *requests) set(localPort uint16) *[requestsPerSet]request {
	return &r.sets[localPort%requestSets]
}

// sent remembers a datagram of this host, which decoded as p. toMany says that
// its target is a broadcast address or a multicast group.
func (r *requests) sent(p *detector.Probe, toMany bool) {
	local, remote := p.Source, p.Target
	if toMany {
		local, remote = unspecified(local), unspecified(remote)
	}
	set := r.set(local.Port())
	slot := &set[0]
	for i := range set {
		q := &set[i]
		if q.local == local && q.remote == remote {
			slot = q
			break
		}
		if q.age(p.At) > slot.age(p.At) {
			slot = q
		}
	}
	*slot = request{local, remote, p.At}
}

// answeredBy reports whether p, a datagram to this host, may answer a request.
func (r *requests) answeredBy(p *detector.Probe) bool {
	local, remote := unspecified(p.Target), unspecified(p.Source)
	set := r.set(p.Target.Port())
	for i := range set {
		q := &set[i]
		same := q.local == p.Target && q.remote == p.Source || q.local == local && q.remote == remote
		if same && q.age(p.At) < requestMemory {
			return true
		}
	}
	return false
}

// unspecified returns the unspecified address of the same family with the port.
func unspecified(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
}

package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"

	"github.com/portsnare/portsnare/detector"
)

// A Survey is what a capture tells of the host it was taken on: which
// addresses are its own, and which of its ports answer. It is immutable and
// safe for concurrent use.
type Survey struct {
	local     []netip.Addr // sorted
	services  map[service]struct{}
	uncounted uint64
}

// service is a port that is in use at an address.
type service struct {
	proto detector.Proto
	at    netip.AddrPort
}

// What a survey remembers at most, whatever a capture holds; together this is
// some 70 MB. A host that is flooded from more addresses is still found: it is
// in all of the pairs that are remembered.
const (
	maxPairs    = 1 << 17
	maxServices = 1 << 17
	maxLocal    = 64
)

// Inspect reads a capture, pcap or pcapng, for what it tells of its host. It
// returns an error if r is not such a capture, cannot be read or if ctx ends.
// At a damaged record the survey ends without an error, because [Replay]
// meets the same record and reports it after the probes before.
//
// The host's own addresses are local, or, if there are none, worked out. A
// capture does not name them, but on a host every packet is to or from one of
// them, so they are the few addresses that together take part in all the
// traffic. Inspect takes the address that takes part in most TCP and UDP
// packets of its family, sets its packets aside, and so on with what remains.
// What a scan does to this is ruled out:
//
//   - Who scans several addresses takes part in more packets than any of them.
//     So an address is passed over if most of what it tried got no answer, and
//     it tried more such than others tried on it.
//   - Where two addresses speak only to each other, both take part in as many
//     packets. Then the one that received more probes than it sent is taken,
//     and after that the lower one.
//   - What remains after the first address of a family may also be traffic of
//     others, seen on a shared wire. It adds an address only if others tried
//     more there without an answer than it tried itself.
//
// Broadcast and multicast addresses are nobody's own. This is a good guess for
// a capture of one host's traffic and none for a network's: there, local must
// say whose view to take.
func Inspect(ctx context.Context, r io.Reader, local ...netip.Addr) (*Survey, error) {
	frames, err := newFrameReader(r)
	if err != nil {
		return nil, err
	}
	s := newSurveyor(local)
	err = frames.each(ctx, func(f *decodedFrame) {
		if f.drop == notDropped {
			s.count(&f.packet, f.link.group)
		}
	})
	var damage *damageError
	if err != nil && !errors.As(err, &damage) {
		return nil, err
	}
	return s.survey(), nil
}

// Local returns the host's own addresses in ascending order. The caller must
// not change them.
func (s *Survey) Local() []netip.Addr { return s.local }

// Uncounted returns how many packets were left out because the capture holds
// more addresses or services than a survey remembers. If it is not zero, a
// service may have been overlooked; if the local addresses are given to
// [Inspect], only their services take up room.
func (s *Survey) Uncounted() uint64 { return s.uncounted }

// InUse reports whether a service answers at target, in the shape of
// [detector.Policy]'s InUse: somewhere in the capture, target accepted a TCP
// connection or sent a UDP datagram. A forged datagram from one of the host's
// addresses to another makes a service of its source port.
func (s *Survey) InUse(proto detector.Proto, target netip.AddrPort) bool {
	_, ok := s.services[service{proto, target}]
	return ok
}

// normalAddrs returns addrs as decoded packets have them, sorted.
func normalAddrs(addrs []netip.Addr) []netip.Addr {
	normal := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		normal = append(normal, a.Unmap().WithZone(""))
	}
	slices.SortFunc(normal, netip.Addr.Compare)
	return slices.Compact(normal)
}

// surveyor gathers a Survey.
type surveyor struct {
	given     []netip.Addr // sorted; empty: to be worked out
	pairs     map[pair]*exchange
	services  map[service]struct{}
	uncounted uint64
}

func newSurveyor(local []netip.Addr) *surveyor {
	return &surveyor{
		given:    normalAddrs(local),
		pairs:    make(map[pair]*exchange),
		services: make(map[service]struct{}),
	}
}

// count takes note of one packet.
func (s *surveyor) count(p *detector.Probe, toGroup bool) {
	source, target := p.Source.Addr(), p.Target.Addr()
	answers := p.Proto == detector.UDP || p.Header.Flags.Has(detector.SYN|detector.ACK)
	// Off the loopback, a host's packet to itself is forged, and would have us
	// overlook probes to its source port.
	forged := source == target && !source.IsLoopback()
	if answers && !forged && (len(s.given) == 0 || contains(s.given, source)) {
		s.addService(service{p.Proto, p.Source})
	}
	if len(s.given) > 0 || toGroup || target.IsMulticast() || target.IsUnspecified() || target == broadcast4 {
		return
	}
	s.addToPair(p)
}

func (s *surveyor) addService(v service) {
	if _, known := s.services[v]; !known && len(s.services) >= maxServices {
		s.uncounted++
		return
	}
	s.services[v] = struct{}{}
}

func (s *surveyor) addToPair(p *detector.Probe) {
	source, target := p.Source.Addr().As16(), p.Target.Addr().As16()
	key, way := pair{source, target}, 0
	if bytes.Compare(source[:], target[:]) > 0 {
		key, way = pair{target, source}, 1
	}
	e := s.pairs[key]
	if e == nil {
		if len(s.pairs) >= maxPairs {
			s.uncounted++
			return
		}
		e = new(exchange)
		s.pairs[key] = e
	}
	e.add(p, way)
}

// survey returns what was gathered.
func (s *surveyor) survey() *Survey {
	local := s.given
	if len(local) == 0 {
		local = workOutLocal(s.pairs)
	}
	// A copy, because a map never gives back the room it had.
	services := make(map[service]struct{})
	for v := range s.services {
		if contains(local, v.at.Addr()) {
			services[v] = struct{}{}
		}
	}
	return &Survey{local: local, services: services, uncounted: s.uncounted}
}

// contains reports whether addr is one of addrs, which are sorted.
func contains(addrs []netip.Addr, addr netip.Addr) bool {
	_, ok := slices.BinarySearchFunc(addrs, addr, netip.Addr.Compare)
	return ok
}

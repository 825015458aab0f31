package capture

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// The kernel itself is asked here: whatever it answers is a probe, so that
// nobody can scan in a form that only the decoder refuses. The reverse is not
// promised, because a probe may be something that the kernel drops later.

// markerPort is the source port of a SYN that is sent after each test's
// packets. Its answer tells that theirs would have come.
const markerPort = 40001

// An inquiry sends packets to a sniffing target and sees its answers.
type inquiry struct {
	wire    *injector
	sniffer *sniffing
	answers int // descriptor of a packet socket
	decoder *decoder
	marker  []byte
}

func newInquiry(t *testing.T) *inquiry {
	t.Helper()
	scanner, target := nettest.NewPair(t)
	q := &inquiry{wire: newInjector(t, scanner, target), sniffer: startSniffing(t, target), decoder: newDecoder()}
	scanner.Do(t, func() {
		var err error
		if q.answers, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL))); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(q.answers) })
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(q.answers, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	ip := ip4(layers.IPProtocolTCP)
	syn := segment(ip, detector.SYN)
	syn.SrcPort = markerPort
	q.marker = serialize(t, ip, syn)
	return q
}

// ask sends packets and tells whether the kernel answered and whether there was
// a probe.
func (q *inquiry) ask(t *testing.T, packets ...taggedPacket) (answered, probed bool) {
	t.Helper()
	for _, p := range packets {
		q.wire.sendAs(t, p.etherType, p.data)
	}
	q.wire.send(t, q.marker)
	for q.nextAnswer(t) != markerPort {
		answered = true
	}
	for q.sniffer.next(t).Source.Port() != markerPort {
		probed = true
	}
	return answered, probed
}

// nextAnswer returns the port to which the trap port's next answer goes. It is
// an answer to a segment without ACK: to one with, a RST comes without.
func (q *inquiry) nextAnswer(t *testing.T) uint16 {
	t.Helper()
	b := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(q.answers, b, 0)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		p, _ := q.decoder.decode(&packet{
			etherType: networkOrder(from.(*unix.SockaddrLinklayer).Protocol), data: b[:n], length: n, checksum: checksumTrusted,
		})
		if p.Source.Port() == trapTCP && p.Header.Flags.Has(detector.RST|detector.ACK) {
			return p.Target.Port()
		}
	}
}

// A taggedPacket is a packet and the EtherType that the frame states.
type taggedPacket struct {
	etherType uint16
	data      []byte
}

func untagged(packets ...[]byte) []taggedPacket {
	var tagged []taggedPacket
	for _, p := range packets {
		tagged = append(tagged, taggedPacket{uint16(etherTypeOf(p)), p})
	}
	return tagged
}

// split returns an IPv4 packet in two fragments, the first with so many bytes
// of payload.
func split4(packet []byte, size int) [][]byte {
	last := append(bytes.Clone(packet[:20]), packet[20+size:]...)
	last = patch(last, 2, binary.BigEndian.AppendUint16(nil, uint16(len(last)))...)
	return [][]byte{fragment4(packet, size), patch(last, 6, 0, byte(size/8))}
}

// split6 does the same with an IPv6 packet.
func split6(packet []byte, size int) [][]byte {
	part := func(offset int, more uint16, data []byte) []byte {
		b := append(bytes.Clone(packet[:40]), fragmentHeader(uint16(offset)|more)(layers.IPProtocol(packet[6]))...)
		b = append(b, data...)
		return patch(patch(b, 4, binary.BigEndian.AppendUint16(nil, uint16(8+len(data)))...), 6, byte(layers.IPProtocolIPv6Fragment))
	}
	return [][]byte{part(0, 1, packet[40:40+size]), part(size, 0, packet[40+size:])}
}

// padded is an extension header that holds one option of four bytes.
func padded(kind byte) func(layers.IPProtocol) []byte {
	return func(next layers.IPProtocol) []byte { return []byte{byte(next), 0, kind, 4, 0, 0, 0, 0} }
}

func withTCPOptions(tb testing.TB, options ...byte) []byte {
	ip := ip4(layers.IPProtocolTCP)
	tcp := serialize(tb, segment(ip, detector.SYN), gopacket.Payload(options))
	tcp[12], tcp[16], tcp[17] = byte(20+len(options))<<2, 0, 0
	n := network{source: scanner4, target: target4, next: layers.IPProtocolTCP}
	binary.BigEndian.PutUint16(tcp[16:], ^fold(sum(n.pseudoSum(len(tcp)), tcp)))
	return serialize(tb, ip, gopacket.Payload(tcp))
}

// TestAnsweredPacketsAreProbes tries forms that a decoder might refuse.
func TestAnsweredPacketsAreProbes(t *testing.T) {
	const (
		hopByHop    = layers.IPProtocolIPv6HopByHop
		destination = layers.IPProtocolIPv6Destination
		routing     = layers.IPProtocolIPv6Routing
	)
	tcp, six := tcp4(t, detector.SYN), tcp6(t, detector.SYN)
	to := func(address net.IP) []byte {
		ip := ip4(layers.IPProtocolTCP)
		ip.DstIP = address
		return serialize(t, ip, segment(ip, detector.SYN))
	}
	tests := map[string][]taggedPacket{
		"IPv4":            untagged(tcp),
		"IPv6":            untagged(six),
		"no flag":         untagged(tcp4(t, 0)),
		"FIN":             untagged(tcp4(t, detector.FIN)),
		"all but ACK":     untagged(tcp6(t, detector.FIN|detector.SYN|detector.PSH|detector.URG|detector.ECE|detector.CWR)),
		"payload":         untagged(tcp4WithPayload(t)),
		"padding":         untagged(append(bytes.Clone(tcp), 1, 2, 3)),
		"reserved bits":   untagged(patch(tcp, 32, 0x5f)),
		"wrong checksum":  untagged(patch(tcp, 36, 1, 2)),
		"offset too far":  untagged(patch(tcp, 32, 0xf0)),
		"TCP no-ops":      untagged(withTCPOptions(t, 1, 1, 1, 1)),
		"TCP option of 0": untagged(withTCPOptions(t, 2, 0, 0, 0)),
		"TCP option over": untagged(withTCPOptions(t, 1, 1, 3, 40)),

		"evil bit":        untagged(patch(tcp, 6, 0x80)),
		"do not fragment": untagged(patch(tcp, 6, 0x40)),
		"TTL 1":           untagged(patch(tcp, 8, 1)),
		"TTL 0":           untagged(patch(tcp, 8, 0)),
		"traffic class":   untagged(patch(tcp, 1, 0xff)),
		"hop limit 0":     untagged(patch(six, 7, 0)),
		"flow label":      untagged(patch(six, 0, 0x6f, 0xff, 0xff, 0xff)),

		"no-op options":         untagged(withOptions(t, option(1, 1), option(1, 1), option(1, 1), option(0, 1))),
		"IP option of two":      untagged(withOptions(t, option(0x99, 2), option(1, 1), option(1, 1))),
		"record route":          untagged(withOptions(t, option(7, 7, 4, 0, 0, 0, 0), option(0, 1))),
		"record route, full":    untagged(withOptions(t, option(7, 7, 8, 0, 0, 0, 0), option(0, 1))),
		"record route, broken":  untagged(withOptions(t, option(7, 7, 3, 0, 0, 0, 0), option(0, 1))),
		"timestamp":             untagged(withOptions(t, option(68, 8, 5, 0, 0, 0, 0, 0))),
		"timestamp, overflow":   untagged(withOptions(t, option(68, 8, 9, 0xf0, 0, 0, 0, 0))),
		"source route, at end":  untagged(withOptions(t, option(131, 7, 8, 192, 0, 2, 2), option(0, 1))),
		"source route, onwards": untagged(withOptions(t, option(131, 7, 4, 192, 0, 2, 2), option(0, 1))),
		"strict source route":   untagged(withOptions(t, option(137, 7, 8, 192, 0, 2, 2), option(0, 1))),
		"router alert":          untagged(withOptions(t, option(148, 4, 0, 0))),
		"security":              untagged(withOptions(t, option(130, 4, 0, 0))),
		"after the end":         untagged(withOptions(t, option(0, 1), option(0x99, 2), option(1, 1))),

		"two fragments":         untagged(split4(tcp4WithPayload(t), 24)...),
		"tiny fragments":        untagged(split4(tcp, 8)...),
		"last fragment first":   untagged(lastFirst(split4(tcp, 16))...),
		"IPv6 fragments":        untagged(split6(serialize(t, ip6(layers.IPProtocolTCP), gopacket.Payload(append(bytes.Clone(six[40:]), 0))), 16)...),
		"IPv6 atomic fragment":  untagged(behind(t, layers.IPProtocolIPv6Fragment, fragmentHeader(0))),
		"IPv6 options in first": untagged(split6(behind(t, destination, extension(8)), 8)...),
		"IPv6 fragments, whole": untagged(split6(behind(t, destination, extension(8)), 24)...),
		"IPv6 last first":       untagged(lastFirst(split6(behind(t, destination, extension(16)), 24))...),

		"destination options":     untagged(behind(t, destination, extension(8))),
		"long options":            untagged(behind(t, destination, extension(256))),
		"padding option":          untagged(behind(t, destination, padded(1))),
		"option to skip":          untagged(behind(t, destination, padded(0x1e))),
		"option to discard":       untagged(behind(t, destination, padded(0x5e))),
		"option to report":        untagged(behind(t, destination, padded(0x9e))),
		"hop-by-hop":              untagged(behind(t, hopByHop, extension(8))),
		"hop-by-hop to skip":      untagged(behind(t, hopByHop, padded(0x1e))),
		"hop-by-hop to discard":   untagged(behind(t, hopByHop, padded(0x5e))),
		"hop-by-hop second":       untagged(behind(t, destination, extension(8, hopByHop), extension(8))),
		"many headers":            untagged(behind(t, destination, chain(40)...)),
		"routing, at end":         untagged(behind(t, routing, extension(24))),
		"routing, unknown, end":   untagged(patch(behind(t, routing, extension(24)), 42, 77)),
		"routing, onwards":        untagged(patch(behind(t, routing, extension(24)), 43, 1)),
		"segment routing, end":    untagged(patch(behind(t, routing, extension(24)), 42, 4)),
		"authentication":          untagged(behind(t, layers.IPProtocolAH, authentication)),
		"mobility":                untagged(behind(t, protocolMobility, extension(8))),
		"HIP":                     untagged(behind(t, protocolHIP, extension(8))),
		"shim6":                   untagged(behind(t, protocolShim6, extension(8))),
		"encrypted":               untagged(behind(t, layers.IPProtocolESP, extension(8))),
		"no next header":          untagged(patch(six, 6, 59)),
		"IPv6 length of 0":        untagged(patch(six, 4, 0, 0)),
		"IPv6 longer than stated": untagged(append(bytes.Clone(six), 1, 2, 3)),

		"broadcast":        untagged(to(net.IPv4(192, 0, 2, 255))),
		"multicast":        untagged(to(net.IPv4(224, 0, 0, 1))),
		"loopback address": untagged(to(net.IPv4(127, 0, 0, 1))),

		"VLAN 0":            {{unix.ETH_P_8021Q, tag(0, layers.EthernetTypeIPv4, tcp)}},
		"VLAN 0, IPv6":      {{unix.ETH_P_8021Q, tag(0xe000, layers.EthernetTypeIPv6, six)}},
		"VLAN 5":            {{unix.ETH_P_8021Q, tag(5, layers.EthernetTypeIPv4, tcp)}},
		"provider's VLAN 0": {{unix.ETH_P_8021AD, tag(0, layers.EthernetTypeIPv4, tcp)}},
		"VLAN 0 twice":      {{unix.ETH_P_8021AD, tag(0, layers.EthernetTypeDot1Q, tag(0, layers.EthernetTypeIPv6, six))}},
		"VLAN 0 thrice":     {{unix.ETH_P_8021Q, tags(3, layers.EthernetTypeIPv4, tcp)}},
		"VLAN 0, 20 times":  {{unix.ETH_P_8021Q, tags(20, layers.EthernetTypeIPv6, six)}},
		"other EtherType":   {{unix.ETH_P_IPV6, tcp}},
	}
	q := newInquiry(t)
	for name, packets := range tests {
		t.Run(name, func(t *testing.T) {
			answered, probed := q.ask(t, packets...)
			if answered && !probed {
				t.Errorf("the kernel answers % x, but it is no probe", packets)
			}
		})
	}
}

func lastFirst(packets [][]byte) [][]byte {
	slices.Reverse(packets)
	return packets
}

// TestAnsweredMutantsAreProbes does the same with packets changed at random.
func TestAnsweredMutantsAreProbes(t *testing.T) {
	q := newInquiry(t)
	random := rand.New(rand.NewPCG(1, 2))
	samples := samplePackets(t)
	answers := 0
	for range 500 {
		mutant := bytes.Clone(samples[random.IntN(len(samples))])
		for range random.IntN(3) {
			mutant[random.IntN(min(len(mutant), 64))] = byte(random.Uint32())
		}
		mutant = patch(mutant, 0) // else most have a wrong checksum
		answered, probed := q.ask(t, untagged(mutant)...)
		if answered && !probed {
			t.Errorf("the kernel answers % x, but it is no probe", mutant)
		}
		if answered {
			answers++
		}
	}
	if answers == 0 {
		t.Error("no mutant was answered")
	}
}

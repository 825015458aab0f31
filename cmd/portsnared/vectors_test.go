package main

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// Every vector has a trap port of its own, by which its lines are known, in
// whatever order they come.
const (
	vectorConfig = `
mode = "stealth"
interfaces = ["eth0"]
[detect]
tcp_ports = "1000-1999"
udp_ports = "1000-1999"
`
	firstVectorPort = 1000
	lastPort        = 1999 // told when all that was sent before has been seen
)

// A vector is a way to probe a port that may get past a detector, or packets
// that look like a probe and are none.
type vector struct {
	send []crafted
	want string // the type in the line for each one sent; empty: silence
}

// vectors are what PortSentry's versions see, and what one or another of them
// misses or imagines. Those that this release does not offer say so in their
// names.
func vectors(scanner, target *nettest.Host) map[string]vector {
	const (
		syn, fin, null, xmas = "TCP SYN/Normal scan", "TCP FIN scan", "TCP NULL scan", "TCP XMAS scan"
		udp                  = "UDP"
		silence              = ""

		destination = layers.IPProtocolIPv6Destination
		hopByHop    = layers.IPProtocolIPv6HopByHop
		xmasFlags   = detector.FIN | detector.PSH | detector.URG
	)
	to4 := crafted{from: scanner.IPv4, to: target.IPv4}
	to6 := crafted{from: scanner.IPv6, to: target.IPv6}
	syn4, udp4 := to4.tcp(detector.SYN), to4.udp()
	syn6, udp6 := to6.tcp(detector.SYN), to6.udp()
	odd := func(syn, fin, psh, urg int) string {
		return fmt.Sprintf("Unknown Type: TCP Packet Flags: SYN: %d FIN: %d ACK: 0 PSH: %d URG: %d RST: 0", syn, fin, psh, urg)
	}
	addr := netip.MustParseAddr
	all := func(c ...crafted) []crafted { return c }

	return map[string]vector{
		"IPv4 SYN":               {all(syn4), syn},
		"IPv4 SYN with ECN":      {all(to4.tcp(detector.SYN | detector.ECE | detector.CWR)), syn},
		"IPv4 FIN":               {all(to4.tcp(detector.FIN)), fin},
		"IPv4 NULL":              {all(to4.tcp(0)), null},
		"IPv4 XMAS":              {all(to4.tcp(xmasFlags)), xmas},
		"IPv4 UDP":               {all(udp4), udp},
		"IPv4 odd flags SYN FIN": {all(to4.tcp(detector.SYN | detector.FIN)), odd(1, 1, 0, 0)},
		"IPv4 odd flags PSH":     {all(to4.tcp(detector.PSH)), odd(0, 0, 1, 0)},
		"IPv4 odd flags URG":     {all(to4.tcp(detector.URG)), odd(0, 0, 0, 1)},
		"IPv4 odd flags ECE":     {all(to4.tcp(detector.ECE)), odd(0, 0, 0, 0)},
		"IPv6 SYN":               {all(syn6), syn},
		"IPv6 FIN":               {all(to6.tcp(detector.FIN)), fin},
		"IPv6 NULL":              {all(to6.tcp(0)), null},
		"IPv6 XMAS":              {all(to6.tcp(xmasFlags)), xmas},
		"IPv6 UDP":               {all(udp6), udp},

		"IPv4 SYN in fragments of 8 bytes, any order":  {syn4.inPieces(8), syn},
		"IPv4 SYN in fragments of 16 bytes, any order": {syn4.inPieces(16), syn},
		"IPv4 FIN in fragments of 8 bytes, any order":  {to4.tcp(detector.FIN).inPieces(8), fin},
		"IPv4 UDP in fragments of 8 bytes, any order":  {udp4.inPieces(8), udp},
		"IPv4 UDP in fragments of 16 bytes, any order": {udp4.inPieces(16), udp},
		"IPv6 SYN in fragments of 8 bytes, any order":  {syn6.inPieces(8), syn},
		"IPv6 SYN in two fragments, any order":         {syn6.inPieces(16), syn},
		"IPv6 SYN in an atomic fragment":               {syn6.inPieces(whole), syn},
		"IPv6 UDP in an atomic fragment":               {udp6.inPieces(whole), udp},

		"IP options, SYN":                      {all(syn4.withOptions()), syn},
		"IP options, UDP":                      {all(udp4.withOptions()), udp},
		"priority tag, IPv4 SYN":               {all(syn4.priorityTagged()), syn},
		"priority tag, IPv4 UDP":               {all(udp4.priorityTagged()), udp},
		"priority tag, IPv6 SYN":               {all(syn6.priorityTagged()), syn},
		"priority tag, IPv6 UDP":               {all(udp6.priorityTagged()), udp},
		"8 of Destination Options":             {all(syn6.behind(destination, 8)), syn},
		"16 of Destination Options":            {all(syn6.behind(destination, 16)), syn},
		"8 of Hop-by-Hop Options":              {all(syn6.behind(hopByHop, 8)), syn},
		"16 of Hop-by-Hop Options":             {all(syn6.behind(hopByHop, 16)), syn},
		"UDP behind 8 of Destination Options":  {all(udp6.behind(destination, 8)), udp},
		"UDP behind 16 of Destination Options": {all(udp6.behind(destination, 16)), udp},
		"UDP behind 8 of Hop-by-Hop Options":   {all(udp6.behind(hopByHop, 8)), udp},
		"UDP behind 16 of Hop-by-Hop Options":  {all(udp6.behind(hopByHop, 16)), udp},

		"to a link-local IPv6 address":       {all(syn6.claiming(scanner.LinkLocal).toward(target.LinkLocal)), syn},
		"UDP to a link-local IPv6 address":   {all(udp6.claiming(scanner.LinkLocal).toward(target.LinkLocal)), udp},
		"to a link-local IPv4 address":       {all(syn4.toward(addr(linkLocal4))), syn},
		"UDP to a link-local IPv4 address":   {all(udp4.toward(addr(linkLocal4))), udp},
		"to IPv4 addresses that start alike": {all(syn4, syn4.toward(addr(alike4)), syn4.toward(addr(alikeToo4))), syn},
		"to IPv6 addresses that start alike": {all(syn6, syn6.toward(addr(alike6)), syn6.toward(addr(alikeToo6))), syn},

		"decoys": {all(
			syn4, syn4.claiming(addr("198.51.100.1")), syn4.claiming(addr("198.51.100.2")), syn4.claiming(addr("203.0.113.3")),
			syn6, syn6.claiming(addr("2001:db8:1::1")), syn6.claiming(addr("2001:db8:1::2")),
		), syn},

		"not offered yet: UDP to broadcast": {all(
			udp4.toward(addr("192.0.2.255")).framedFor(everyone), udp4.toward(addr("255.255.255.255")).framedFor(everyone),
		), silence},
		"not offered yet: UDP to IPv6 multicast": {all(udp6.toward(addr("ff02::1")).framedFor(allNodes)), silence},
		"not offered yet: ACK and window scan":   {all(to4.tcp(detector.ACK), to6.tcp(detector.ACK)), silence},
		"not offered yet: Maimon scan":           {all(to4.tcp(detector.FIN|detector.ACK), to6.tcp(detector.FIN|detector.ACK)), silence},
		"port 0 cannot be a trap port":           {all(syn4.toPortZero(), udp4.toPortZero(), syn6.toPortZero(), udp6.toPortZero()), silence},

		"false alarm: wrong checksum": {all(
			syn4.spoiled(10), syn4.spoiled(20+16), udp4.spoiled(20+6), syn6.spoiled(40+16), udp6.spoiled(40+6),
		), silence},
		"false alarm: frame for another host": {all(syn4.framedFor(somebody), udp4.framedFor(somebody), syn6.framedFor(somebody)), silence},
		"false alarm: later fragment like a header": {all(
			syn4.asFragment(8), syn4.asFragment(16), syn4.asFragment(1480), udp4.asFragment(8), udp4.asFragment(16),
			syn6.asFragment(8), syn6.asFragment(16), udp6.asFragment(8), udp6.asFragment(1232),
		), silence},
	}
}

// What the target has besides the addresses of its own.
const (
	linkLocal4        = "169.254.7.2"
	alike4, alikeToo4 = "192.0.2.20", "192.0.2.200" // as texts, they start with the target's own
	alike6, alikeToo6 = "2001:db8::20", "2001:db8::200"
)

// Hardware addresses that are not the target's own.
const (
	everyone = "ff:ff:ff:ff:ff:ff"
	allNodes = "33:33:00:00:00:01" // RFC 2464, section 7
	somebody = "02:00:5e:00:53:01"
)

func TestDetectionVectors(t *testing.T) {
	t.Parallel()
	scanner, target := nettest.NewPair(t)
	for _, address := range []string{linkLocal4 + "/16", alike4 + "/24", alikeToo4 + "/24", alike6 + "/64", alikeToo6 + "/64"} {
		target.Run(t, "ip", "address", "add", address, "dev", target.Interface, "nodad")
	}
	daemon := startDaemon(t, target, vectorConfig)

	wire := newVectorWire(t, scanner, target)
	tests := vectors(scanner, target)
	names := slices.Sorted(maps.Keys(tests))
	for i, name := range names {
		for _, c := range tests[name].send {
			wire.send(t, c, firstVectorPort+uint16(i))
		}
	}
	last := crafted{from: scanner.IPv4, to: target.IPv4}.tcp(detector.SYN)
	wire.send(t, last, lastPort)
	daemon.Stdout.WaitLine(t, fmt.Sprintf("port: [%d]", lastPort))
	if err := daemon.Stop(t); err != nil {
		t.Errorf("portsnared ended with %v, want status 0", err)
	}

	got := linesByPort(t, daemon.Stdout.Lines())
	delete(got, lastPort)
	for i, name := range names {
		port := firstVectorPort + uint16(i)
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tests[name].lines(port), sorted(got[port])); diff != "" {
				t.Errorf("lines (-want +got)\n%s\nsent:\n%s", diff, strings.Join(wire.sent[port], "\n"))
			}
		})
		delete(got, port)
	}
	for port, lines := range got {
		t.Errorf("nobody probed port %d, yet there is %q", port, lines)
	}
}

// lines returns the lines that the vector is to lead to, sorted.
func (v vector) lines(port uint16) (lines []string) {
	if v.want == "" {
		return nil
	}
	for _, c := range v.send {
		line := scanLine(c.from, c.protocol.String(), strconv.Itoa(int(port)), v.want)
		if c.options != nil {
			line = strings.Replace(line, "[not set]", "[set]", 1)
		}
		lines = append(lines, line)
	}
	return sorted(lines)
}

var portInLine = regexp.MustCompile(` port: \[(\d+)\] `)

func linesByPort(t *testing.T, lines []string) map[uint16][]string {
	t.Helper()
	byPort := make(map[uint16][]string)
	for _, line := range lines {
		match := portInLine.FindStringSubmatch(line)
		if match == nil {
			t.Errorf("line %q has no port", line)
			continue
		}
		port, err := strconv.ParseUint(match[1], 10, 16)
		if err != nil {
			t.Errorf("line %q: %v", line, err)
		}
		byPort[uint16(port)] = append(byPort[uint16(port)], line)
	}
	return byPort
}

// A vectorWire sends crafted packets and remembers them, in hexadecimal.
type vectorWire struct {
	*nettest.Wire
	scanner, target net.HardwareAddr

	id   uint16 // of the last packet; no two have the same
	sent map[uint16][]string
}

func newVectorWire(t *testing.T, scanner, target *nettest.Host) *vectorWire {
	t.Helper()
	return &vectorWire{
		Wire:    scanner.Wire(t),
		scanner: scanner.HardwareAddr(t),
		target:  target.HardwareAddr(t),
		sent:    make(map[uint16][]string),
	}
}

func (w *vectorWire) send(t *testing.T, c crafted, port uint16) {
	t.Helper()
	w.id++
	for _, packet := range c.packets(t, port, w.id) {
		frame := w.frame(t, c, packet)
		w.sent[port] = append(w.sent[port], fmt.Sprintf("%x", frame))
		w.Send(t, frame)
	}
}

// frame puts what stands before the packet in front of it.
func (w *vectorWire) frame(t *testing.T, c crafted, packet []byte) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: w.scanner, DstMAC: w.target, EthernetType: layers.EthernetTypeIPv4}
	if c.to.Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
	}
	if c.mac != "" {
		mac, err := net.ParseMAC(c.mac)
		if err != nil {
			t.Fatal(err)
		}
		eth.DstMAC = mac
	}
	if !c.tagged {
		return serialize(t, eth, gopacket.Payload(packet))
	}
	tag := &layers.Dot1Q{Priority: 5, VLANIdentifier: 0, Type: eth.EthernetType}
	eth.EthernetType = layers.EthernetTypeDot1Q
	return serialize(t, eth, tag, gopacket.Payload(packet))
}

func serialize(t *testing.T, stack ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, stack...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// crafted describes a packet. Its methods return a copy that differs.
type crafted struct {
	from, to netip.Addr
	protocol layers.IPProtocol
	flags    detector.TCPFlags
	portZero bool

	mac      string // where the frame goes; empty: to the target
	tagged   bool   // with a tag of VLAN 0
	options  []layers.IPv4Option
	headers  []extension // of IPv6, before the transport or the fragment header
	spoil    int         // a byte of the packet that is wrong; 0: none
	piece    int         // bytes of the payload in each fragment; 0: not fragmented
	order    []int       // in which the fragments are sent
	position int         // where in a datagram the first fragment claims to be, in bytes
}

// An extension is an IPv6 extension header full of padding.
type extension struct {
	protocol layers.IPProtocol
	length   int
}

// whole is a size of fragments into which every packet fits.
const whole = 1024

func (c crafted) tcp(flags detector.TCPFlags) crafted {
	c.protocol, c.flags = layers.IPProtocolTCP, flags
	return c
}

func (c crafted) udp() crafted {
	c.protocol = layers.IPProtocolUDP
	return c
}

func (c crafted) claiming(source netip.Addr) crafted { c.from = source; return c }
func (c crafted) toward(target netip.Addr) crafted   { c.to = target; return c }
func (c crafted) framedFor(mac string) crafted       { c.mac = mac; return c }
func (c crafted) priorityTagged() crafted            { c.tagged = true; return c }
func (c crafted) toPortZero() crafted                { c.portZero = true; return c }
func (c crafted) spoiled(at int) crafted             { c.spoil = at; return c }

// withOptions adds a router alert (RFC 2113).
func (c crafted) withOptions() crafted {
	c.options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	return c
}

func (c crafted) behind(header layers.IPProtocol, length int) crafted {
	c.headers = append(slices.Clip(c.headers), extension{header, length})
	return c
}

// inPieces returns the packet cut into fragments of size bytes, once for every
// order in which they can be sent.
func (c crafted) inPieces(size int) (all []crafted) {
	c.piece = size
	pieces := (c.length() + size - 1) / size
	for _, c.order = range orders(pieces) {
		all = append(all, c)
	}
	return all
}

// asFragment makes the packet a last fragment that starts at a byte which is
// not its datagram's first.
func (c crafted) asFragment(position int) crafted {
	c.piece, c.order, c.position = whole, []int{0}, position
	return c
}

// orders returns all orders of the numbers below n.
func orders(n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var all [][]int
	for _, shorter := range orders(n - 1) {
		for at := range n {
			all = append(all, slices.Insert(slices.Clone(shorter), at, n-1))
		}
	}
	return all
}

const (
	segmentLength  = 20
	datagramLength = 8 + len(datagramText)
	datagramText   = "is anybody there"
)

// length returns how long the transport header and its payload are.
func (c crafted) length() int {
	if c.protocol == layers.IPProtocolUDP {
		return datagramLength
	}
	return segmentLength
}

// packets returns the packet to a port from its IP header on, or its fragments
// in the order in which they are sent.
func (c crafted) packets(t *testing.T, port, id uint16) [][]byte {
	t.Helper()
	if c.portZero {
		port = 0
	}
	payload := c.transport(t, port)
	if c.piece == 0 {
		return [][]byte{c.packet(t, payload, id, nil)}
	}
	pieces := slices.Collect(slices.Chunk(payload, c.piece))
	var packets [][]byte
	for _, i := range c.order {
		f := &fragment{offset: uint16((c.position + i*c.piece) / 8), more: i < len(pieces)-1}
		packets = append(packets, c.packet(t, pieces[i], id, f))
	}
	return packets
}

// transport returns the segment or datagram.
func (c crafted) transport(t *testing.T, port uint16) []byte {
	t.Helper()
	const sourcePort = 40000
	if c.protocol == layers.IPProtocolUDP {
		udp := &layers.UDP{SrcPort: sourcePort, DstPort: layers.UDPPort(port)}
		c.checksummed(t, udp.SetNetworkLayerForChecksum)
		return serialize(t, udp, gopacket.Payload(datagramText))
	}
	tcp := &layers.TCP{
		SrcPort: sourcePort, DstPort: layers.TCPPort(port), Seq: 0x01020304, Window: 1024,
		FIN: c.flags.Has(detector.FIN), SYN: c.flags.Has(detector.SYN), RST: c.flags.Has(detector.RST), PSH: c.flags.Has(detector.PSH),
		ACK: c.flags.Has(detector.ACK), URG: c.flags.Has(detector.URG), ECE: c.flags.Has(detector.ECE), CWR: c.flags.Has(detector.CWR),
	}
	c.checksummed(t, tcp.SetNetworkLayerForChecksum)
	return serialize(t, tcp)
}

// checksummed tells a transport the addresses that its checksum covers.
func (c crafted) checksummed(t *testing.T, over func(gopacket.NetworkLayer) error) {
	t.Helper()
	var ip gopacket.NetworkLayer = &layers.IPv4{SrcIP: c.from.AsSlice(), DstIP: c.to.AsSlice()}
	if c.to.Is6() {
		ip = &layers.IPv6{SrcIP: c.from.AsSlice(), DstIP: c.to.AsSlice()}
	}
	if err := over(ip); err != nil {
		t.Fatal(err)
	}
}

// A fragment says which part of a datagram a packet holds.
type fragment struct {
	offset uint16 // in units of eight bytes
	more   bool   // others follow
}

// packet puts IP and extension headers in front of a payload; f is nil for a
// datagram that is not fragmented.
func (c crafted) packet(t *testing.T, payload []byte, id uint16, f *fragment) []byte {
	t.Helper()
	var packet []byte
	if c.to.Is4() {
		packet = c.packet4(t, payload, id, f)
	} else {
		packet = c.packet6(t, payload, id, f)
	}
	if c.spoil > 0 {
		packet[c.spoil]++
	}
	return packet
}

func (c crafted) packet4(t *testing.T, payload []byte, id uint16, f *fragment) []byte {
	t.Helper()
	ip := &layers.IPv4{
		Version: 4, TTL: 64, Id: id, Protocol: c.protocol, Options: c.options,
		SrcIP: c.from.AsSlice(), DstIP: c.to.AsSlice(),
	}
	if f != nil {
		ip.FragOffset = f.offset
		if f.more {
			ip.Flags = layers.IPv4MoreFragments
		}
	}
	return serialize(t, ip, gopacket.Payload(payload))
}

func (c crafted) packet6(t *testing.T, payload []byte, id uint16, f *fragment) []byte {
	t.Helper()
	next := c.protocol
	if f != nil { // RFC 8200, section 4.5; gopacket does not write this header
		header := []byte{byte(next), 0}
		header = binary.BigEndian.AppendUint16(header, f.offset<<3)
		header = binary.BigEndian.AppendUint32(header, uint32(id))
		if f.more {
			header[3] |= 1
		}
		payload, next = append(header, payload...), layers.IPProtocolIPv6Fragment
	}
	for _, e := range slices.Backward(c.headers) {
		payload, next = append(e.bytes(next), payload...), e.protocol
	}
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: c.from.AsSlice(), DstIP: c.to.AsSlice()}
	return serialize(t, ip, gopacket.Payload(payload))
}

// bytes returns the header with a PadN option that fills it (RFC 8200, section
// 4.2).
func (e extension) bytes(next layers.IPProtocol) []byte {
	const padN = 1
	header := make([]byte, e.length)
	copy(header, []byte{byte(next), byte(e.length/8 - 1), padN, byte(e.length - 4)})
	return header
}

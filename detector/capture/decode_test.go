package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/portsnare/portsnare/detector"
)

var (
	scanner4 = netip.MustParseAddr("192.0.2.1")
	target4  = netip.MustParseAddr("192.0.2.2")
	scanner6 = netip.MustParseAddr("2001:db8::1")
	target6  = netip.MustParseAddr("2001:db8::2")
	arrival  = time.Date(2026, 11, 22, 7, 44, 33, 659_000_123, time.UTC)
)

// serialize builds the bytes of layers with lengths and checksums filled in.
func serialize(tb testing.TB, ls ...gopacket.SerializableLayer) []byte {
	tb.Helper()
	b := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, options, ls...); err != nil {
		tb.Fatalf("building a packet: %v", err)
	}
	return bytes.Clone(b.Bytes())
}

func ip4(next layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Id: 0x1234, Protocol: next,
		SrcIP: scanner4.AsSlice(), DstIP: target4.AsSlice(),
	}
}

func ip6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, HopLimit: 64, NextHeader: next,
		SrcIP: scanner6.AsSlice(), DstIP: target6.AsSlice(),
	}
}

// tcp4 is an IPv4 TCP segment with the given flags to port 11.
func tcp4(tb testing.TB, flags detector.TCPFlags) []byte {
	tb.Helper()
	ip := ip4(layers.IPProtocolTCP)
	return serialize(tb, ip, segment(ip, flags))
}

// tcp6 is an IPv6 TCP segment with the given flags to port 11.
func tcp6(tb testing.TB, flags detector.TCPFlags) []byte {
	tb.Helper()
	ip := ip6(layers.IPProtocolTCP)
	return serialize(tb, ip, segment(ip, flags))
}

func segment(ip gopacket.NetworkLayer, f detector.TCPFlags) *layers.TCP {
	t := &layers.TCP{
		SrcPort: 40000, DstPort: 11, Seq: 0x01020304, Window: 1024,
		FIN: f.Has(detector.FIN), SYN: f.Has(detector.SYN), RST: f.Has(detector.RST), PSH: f.Has(detector.PSH),
		ACK: f.Has(detector.ACK), URG: f.Has(detector.URG), ECE: f.Has(detector.ECE), CWR: f.Has(detector.CWR),
	}
	if err := t.SetNetworkLayerForChecksum(ip); err != nil {
		panic(err)
	}
	return t
}

func datagram(ip gopacket.NetworkLayer) *layers.UDP {
	u := &layers.UDP{SrcPort: 40000, DstPort: 7}
	if err := u.SetNetworkLayerForChecksum(ip); err != nil {
		panic(err)
	}
	return u
}

// behind returns a TCP SYN over IPv6 behind the given extension headers, which
// must end with the next header's number left out: each header is a function
// from that number to its bytes.
func behind(tb testing.TB, first layers.IPProtocol, headers ...func(next layers.IPProtocol) []byte) []byte {
	tb.Helper()
	whole := tcp6(tb, detector.SYN)
	header, payload := whole[:40], whole[40:]
	next := layers.IPProtocolTCP
	for _, h := range slices.Backward(headers) {
		b := h(next)
		payload = append(b, payload...)
		next = 0
	}
	header[6] = byte(first)
	binary.BigEndian.PutUint16(header[4:], uint16(len(payload)))
	return append(header, payload...)
}

// extension is a generic extension header of length bytes, full of Pad1.
func extension(length int, chained ...layers.IPProtocol) func(layers.IPProtocol) []byte {
	return func(next layers.IPProtocol) []byte {
		b := make([]byte, length)
		b[0], b[1] = byte(next), byte(length/8-1)
		if len(chained) > 0 {
			b[0] = byte(chained[0])
		}
		return b
	}
}

func fragmentHeader(offsetAndMore uint16) func(layers.IPProtocol) []byte {
	return func(next layers.IPProtocol) []byte {
		b := make([]byte, 8)
		b[0], b[1] = byte(next), 0xff // reserved, must not be read as a length
		binary.BigEndian.PutUint16(b[2:], offsetAndMore)
		return b
	}
}

func withOptions(tb testing.TB, options ...layers.IPv4Option) []byte {
	tb.Helper()
	ip := ip4(layers.IPProtocolTCP)
	ip.Options = options
	return serialize(tb, ip, segment(ip, detector.SYN))
}

// patch returns a copy of b with the bytes at offset replaced and, for IPv4,
// the header checksum made right again.
func patch(b []byte, offset int, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[offset:], with)
	if b[0]>>4 == 4 {
		header := b[:min(int(b[0]&0x0f)*4, len(b))]
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(0, header)))
	}
	return b
}

// fragment4 returns the first size payload bytes of an IPv4 packet as its
// first fragment.
func fragment4(b []byte, size int) []byte {
	b = patch(b, 2, 0, byte(20+size))
	return patch(b, 6, 0x20, 0)[:20+size]
}

func tag(vid uint16, etherType layers.EthernetType, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, vid)
	return append(binary.BigEndian.AppendUint16(b, uint16(etherType)), data...)
}

// tags puts n tags of VLAN 0 around data.
func tags(n int, etherType layers.EthernetType, data []byte) []byte {
	for range n {
		data, etherType = tag(0, etherType, data), layers.EthernetTypeDot1Q
	}
	return data
}

func TestDecode(t *testing.T) {
	syn4 := detector.Probe{
		At:     arrival,
		Source: netip.AddrPortFrom(scanner4, 40000), Target: netip.AddrPortFrom(target4, 11),
		Proto: detector.TCP, Technique: detector.TechniqueSYN,
		Header: detector.HeaderFacts{
			Flags: detector.SYN, TTL: 64, Window: 1024, IPID: 0x1234, Sequence: 0x01020304,
		},
		IPOptions: detector.False, Interface: "eth0",
	}
	syn6 := syn4
	syn6.Source, syn6.Target = netip.AddrPortFrom(scanner6, 40000), netip.AddrPortFrom(target6, 11)
	syn6.Header.IPID, syn6.IPOptions = 0, detector.Unset
	change := func(p detector.Probe, f func(*detector.Probe)) detector.Probe { f(&p); return p }
	synWithOptions := change(syn4, func(p *detector.Probe) { p.IPOptions = detector.True })
	udp := func(p detector.Probe, port uint16) detector.Probe {
		return change(p, func(p *detector.Probe) {
			p.Proto, p.Technique = detector.UDP, detector.TechniqueUDP
			p.Target = netip.AddrPortFrom(p.Target.Addr(), port)
			p.Header.Flags, p.Header.Window, p.Header.Sequence = 0, 0, 0
		})
	}
	v4, v6 := ip4(layers.IPProtocolUDP), ip6(layers.IPProtocolUDP)
	udp4, udp6 := serialize(t, v4, datagram(v4)), serialize(t, v6, datagram(v6))
	tcp := tcp4(t, detector.SYN)
	const (
		hopByHop    = layers.IPProtocolIPv6HopByHop
		destination = layers.IPProtocolIPv6Destination
		routing     = layers.IPProtocolIPv6Routing
		fragment    = layers.IPProtocolIPv6Fragment
	)

	tests := map[string]struct {
		etherType layers.EthernetType // IPv4 or IPv6 by the first nibble when zero
		data      []byte
		cut       int
		checksum  checksumState
		want      detector.Probe
		drop      dropReason
	}{
		"IPv4 SYN":              {data: tcp, want: syn4},
		"IPv6 SYN":              {data: tcp6(t, detector.SYN), want: syn6},
		"IPv4 UDP":              {data: udp4, want: udp(syn4, 7)},
		"IPv6 UDP":              {data: udp6, want: udp(syn6, 7)},
		"link padding":          {data: append(bytes.Clone(tcp), 0, 0, 0, 0, 0, 0), want: syn4},
		"UDP without checksum":  {data: patch(udp4, 26, 0, 0), want: udp(syn4, 7)},
		"IPv6 UDP without":      {data: patch(udp6, 46, 0, 0), drop: dropChecksum},
		"UDP length too small":  {data: patch(udp4, 24, 0, 7), drop: dropMalformed},
		"UDP length too large":  {data: patch(udp4, 24, 0, 9), drop: dropMalformed},
		"priority tag":          {etherType: layers.EthernetTypeDot1Q, data: tag(0, layers.EthernetTypeIPv4, tcp), want: syn4},
		"QinQ":                  {etherType: layers.EthernetTypeQinQ, data: tag(5, layers.EthernetTypeDot1Q, tag(6, layers.EthernetTypeIPv4, tcp)), want: syn4},
		"twenty tags":           {etherType: layers.EthernetTypeDot1Q, data: tags(20, layers.EthernetTypeIPv4, tcp), want: syn4},
		"tag around ARP":        {etherType: layers.EthernetTypeDot1Q, data: tag(0, layers.EthernetTypeARP, make([]byte, 28)), drop: dropNotIP},
		"half a tag":            {etherType: layers.EthernetTypeDot1Q, data: []byte{0, 0, 8}, drop: dropMalformed},
		"ARP":                   {etherType: layers.EthernetTypeARP, data: make([]byte, 28), drop: dropNotIP},
		"nothing":               {etherType: layers.EthernetTypeIPv4, drop: dropMalformed},
		"ICMP":                  {data: patch(tcp, 9, 1), drop: dropOtherProtocol},
		"IPv4 header only":      {data: patch(tcp, 2, 0, 20)[:20], drop: dropMalformed},
		"IPv4 header too short": {data: patch(tcp, 0, 0x44), drop: dropMalformed},
		"IPv4 longer than wire": {data: patch(tcp, 2, 0, 41), drop: dropMalformed},
		"IPv4 wrong version":    {data: patch(tcp, 0, 0x65), etherType: layers.EthernetTypeIPv4, drop: dropMalformed},
		"TCP header too short":  {data: patch(tcp, 2, 0, 39)[:39], drop: dropMalformed},
		"TCP offset too small":  {data: patch(tcp, 32, 0x40), drop: dropMalformed},
		"TCP offset too large":  {data: patch(tcp, 32, 0x60), drop: dropMalformed},
		"captured in part":      {data: tcp[:30], cut: 10, drop: dropTruncated},
		"payload not captured": {
			data: serialize(t, v4, datagram(v4), gopacket.Payload("x"))[:28], cut: 1, want: udp(syn4, 7),
		},
		"ECN": {
			data: tcp4(t, detector.SYN|detector.ECE|detector.CWR),
			want: change(syn4, func(p *detector.Probe) { p.Header.Flags |= detector.ECE | detector.CWR }),
		},
		"IP option of 2 bytes":    {data: withOptions(t, option(0x99, 2), option(1, 1), option(1, 1)), want: synWithOptions},
		"record route":            {data: withOptions(t, option(7, 7, 4, 0, 0, 0, 0), option(0, 1)), want: synWithOptions},
		"IP option of no length":  {data: patch(withOptions(t, option(0x99, 4, 0, 0)), 21, 0), drop: dropMalformed},
		"IP option over the edge": {data: patch(withOptions(t, option(0x99, 4, 0, 0)), 21, 5), drop: dropMalformed},

		"wrong TCP checksum":         {data: patch(tcp, 36, 1, 2), drop: dropChecksum},
		"wrong IPv4 checksum":        {data: append(append(bytes.Clone(tcp[:10]), 1, 2), tcp[12:]...), drop: dropChecksum},
		"TCP checksum to be filled":  {data: patch(tcp, 36, 1, 2), checksum: checksumTrusted, want: syn4},
		"TCP checksum left, lenient": {data: withPseudoSum(tcp), checksum: checksumLenient, want: syn4},
		"TCP checksum left, strict":  {data: withPseudoSum(tcp), drop: dropChecksum},
		"wrong checksum, lenient":    {data: patch(tcp, 36, 1, 2), checksum: checksumLenient, drop: dropChecksum},

		"first fragment of 24":                   {data: fragment4(tcp4WithPayload(t), 24), want: syn4},
		"first fragment of 16":                   {data: fragment4(tcp, 16), want: syn4},
		"first fragment of 8":                    {data: fragment4(tcp, 8), drop: dropFragment},
		"first fragment of 15":                   {data: fragment4(tcp, 15), drop: dropFragment}, // Linux takes 8 of it
		"first fragment of 4":                    {data: fragment4(tcp, 4), drop: dropMalformed},
		"second fragment":                        {data: patch(tcp, 6, 0, 1), drop: dropFragment},
		"last fragment that looks like a header": {data: patch(tcp, 6, 0x20, 2), drop: dropFragment},

		"destination options, 8":     {data: behind(t, destination, extension(8)), want: syn6},
		"destination options, 16":    {data: behind(t, destination, extension(16)), want: syn6},
		"destination options, 2048":  {data: behind(t, destination, extension(2048)), want: syn6},
		"hop-by-hop, 8":              {data: behind(t, hopByHop, extension(8)), want: syn6},
		"hop-by-hop, 2048":           {data: behind(t, hopByHop, extension(2048)), want: syn6},
		"hop-by-hop not first":       {data: behind(t, destination, extension(8, hopByHop), extension(8)), drop: dropMalformed},
		"routing":                    {data: behind(t, routing, extension(24)), want: syn6},
		"routing, segments left":     {data: patch(behind(t, routing, extension(24)), 43, 1), drop: dropMalformed},
		"routing, cut short":         {data: patch(behind(t, routing, extension(24)), 4, 0, 3)[:43], drop: dropMalformed},
		"twenty headers":             {data: behind(t, destination, chain(20)...), want: syn6},
		"atomic fragment":            {data: behind(t, fragment, fragmentHeader(0)), want: syn6},
		"IPv6 first fragment":        {data: behind(t, fragment, fragmentHeader(1)), want: syn6},
		"IPv6 second fragment":       {data: behind(t, fragment, fragmentHeader(1<<3)), drop: dropFragment},
		"authentication header":      {data: behind(t, layers.IPProtocolAH, authentication), want: syn6},
		"extension over the edge":    {data: patch(behind(t, destination, extension(8)), 41, 200), drop: dropMalformed},
		"IPv6 without payload":       {data: patch(tcp6(t, detector.SYN), 4, 0, 0), drop: dropMalformed},
		"IPv6 longer than wire":      {data: patch(tcp6(t, detector.SYN), 4, 0, 21), drop: dropMalformed},
		"ICMPv6 neighbour discovery": {data: patch(tcp6(t, detector.SYN), 6, 58), drop: dropOtherProtocol},

		"source unspecified":       {data: patch(tcp, 12, 0, 0, 0, 0), drop: dropBadSource},
		"source broadcast":         {data: patch(tcp, 12, 255, 255, 255, 255), drop: dropBadSource},
		"source multicast":         {data: patch(tcp, 12, 224, 0, 0, 1), drop: dropBadSource},
		"IPv6 source IPv4-mapped":  {data: patch(tcp6(t, detector.SYN), 8, net.IPv4(192, 0, 2, 9).To16()...), drop: dropBadSource},
		"IPv6 source unspecified":  {data: patch(tcp6(t, detector.SYN), 8, make([]byte, 16)...), drop: dropBadSource},
		"IPv6 source of multicast": {data: patch(tcp6(t, detector.SYN), 8, 0xff), drop: dropBadSource},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDecoder()
			etherType := test.etherType
			if etherType == 0 {
				etherType = etherTypeOf(test.data)
			}
			got, drop := d.decode(&packet{
				at: arrival, etherType: uint16(etherType), data: test.data,
				length: len(test.data) + test.cut, iface: "eth0", checksum: test.checksum,
			})
			if drop != test.drop {
				t.Fatalf("decode(% x) dropped it for %q, want %q", test.data, drop, test.drop)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("decode(% x): (-want +got)\n%s", test.data, diff)
			}
		})
	}
}

// A header cut after eight bytes is put together, in any order.
func TestDecodeJoinsHalves(t *testing.T) {
	const (
		syn  = "192.0.2.1:40000 -> 192.0.2.2:11 SYN"
		syn6 = "[2001:db8::1]:40000 -> [2001:db8::2]:11 SYN"
	)
	halves4, halves6 := split4(tcp4(t, detector.SYN), 8), split6(tcp6(t, detector.SYN), 8)
	other := split4(patch(tcp4(t, detector.FIN), 4, 0x43, 0x21), 8)
	ack := split4(tcp4(t, detector.ACK), 8)
	tests := map[string]struct {
		packets [][]byte
		late    time.Duration // of the last
		want    []string
	}{
		"in order":               {packets: halves4, want: []string{syn}},
		"last first":             {packets: [][]byte{halves4[1], halves4[0]}, want: []string{syn}},
		"IPv6":                   {packets: halves6, want: []string{syn6}},
		"IPv6, last first":       {packets: [][]byte{halves6[1], halves6[0]}, want: []string{syn6}},
		"first alone":            {packets: halves4[:1]},
		"second alone":           {packets: halves4[1:]},
		"the same half twice":    {packets: [][]byte{halves4[0], halves4[0]}},
		"of different datagrams": {packets: [][]byte{halves4[0], other[1]}},
		"of both IP versions":    {packets: [][]byte{halves4[0], halves6[1]}},
		"two datagrams at once": {
			packets: [][]byte{halves4[0], other[0], halves4[1], other[1]},
			want:    []string{syn, "192.0.2.1:40000 -> 192.0.2.2:11 FIN"},
		},
		"with the flags of an answer": {packets: ack},
		"in time":                     {packets: halves4, late: halfPatience, want: []string{syn}},
		"too late":                    {packets: halves4, late: halfPatience + 1},
		"before its time":             {packets: halves4, late: -1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDecoder()
			var got []string
			for i, data := range test.packets {
				pkt := packet{at: arrival, etherType: uint16(etherTypeOf(data)), data: data, length: len(data)}
				if i == len(test.packets)-1 {
					pkt.at = arrival.Add(test.late)
				}
				if p, drop := d.decode(&pkt); drop == notDropped && isProbe(&p) {
					got = append(got, fmt.Sprintf("%v -> %v %v", p.Source, p.Target, p.Technique))
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("probes (-want +got):\n%s", diff)
			}
		})
	}
}

// Halves that never meet take no memory, and do not keep others apart for long.
func TestHalvesAreBounded(t *testing.T) {
	w := new(halves)
	id := func(n int) datagramID { return datagramID{scanner4, target4, uint32(n)} }
	var whole [16]byte
	for n := range 10_000 {
		if w.join(half{of: id(n), at: arrival}, &whole) {
			t.Fatalf("half %d of a datagram of its own met another", n)
		}
	}
	if !w.join(half{of: id(9_999), at: arrival, second: true}, &whole) {
		t.Error("the other half of the latest is not there")
	}
	if w.join(half{of: id(0), at: arrival, second: true}, &whole) {
		t.Error("the other half of the oldest is still there")
	}
}

func option(kind, length byte, data ...byte) layers.IPv4Option {
	return layers.IPv4Option{OptionType: kind, OptionLength: length, OptionData: data}
}

func chain(n int) []func(layers.IPProtocol) []byte {
	headers := make([]func(layers.IPProtocol) []byte, n)
	for i := range headers {
		headers[i] = extension(8, layers.IPProtocolIPv6Destination)
	}
	headers[n-1] = extension(8)
	return headers
}

func authentication(next layers.IPProtocol) []byte {
	b := make([]byte, 24)
	b[0], b[1] = byte(next), 24/4-2
	return b
}

func withPseudoSum(tcp []byte) []byte {
	n := network{source: scanner4, target: target4, next: layers.IPProtocolTCP}
	return patch(tcp, 36, binary.BigEndian.AppendUint16(nil, fold(n.pseudoSum(len(tcp)-20)))...)
}

func tcp4WithPayload(tb testing.TB) []byte {
	tb.Helper()
	ip := ip4(layers.IPProtocolTCP)
	return serialize(tb, ip, segment(ip, detector.SYN), gopacket.Payload(make([]byte, 64)))
}

func etherTypeOf(data []byte) layers.EthernetType {
	if len(data) > 0 && data[0]>>4 == 6 {
		return layers.EthernetTypeIPv6
	}
	return layers.EthernetTypeIPv4
}

func TestIsProbe(t *testing.T) {
	for flags := range 256 {
		f := detector.TCPFlags(flags)
		p := detector.Probe{Proto: detector.TCP, Header: detector.HeaderFacts{Flags: f}}
		if got, want := isProbe(&p), !f.Has(detector.ACK) && !f.Has(detector.RST); got != want {
			t.Errorf("isProbe with TCP flags %08b = %v, want %v", flags, got, want)
		}
	}
	if !isProbe(&detector.Probe{Proto: detector.UDP}) {
		t.Error("isProbe of a datagram = false, want true")
	}
}

// samplePackets are whole packets of every kind, for fuzzing and benchmarks.
func samplePackets(tb testing.TB) [][]byte {
	tb.Helper()
	v4, v6 := ip4(layers.IPProtocolUDP), ip6(layers.IPProtocolUDP)
	return [][]byte{
		tcp4(tb, detector.SYN),
		tcp6(tb, detector.SYN),
		serialize(tb, v4, datagram(v4)),
		serialize(tb, v6, datagram(v6)),
		withOptions(tb, option(0x99, 2), option(1, 1), option(1, 1)),
		fragment4(tcp4(tb, detector.SYN), 16),
		behind(tb, layers.IPProtocolIPv6Destination, chain(4)...),
		behind(tb, layers.IPProtocolIPv6Fragment, fragmentHeader(0)),
		tag(0, layers.EthernetTypeIPv4, tcp4(tb, detector.SYN)),
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range append(samplePackets(f), split4(tcp4(f, detector.SYN), 8)...) {
		for _, etherType := range []layers.EthernetType{0x0800, 0x86dd, 0x8100} {
			f.Add(uint16(etherType), b, len(b), uint8(checksumVerify))
		}
	}
	d := newDecoder()
	f.Fuzz(func(t *testing.T, etherType uint16, data []byte, length int, state uint8) {
		pkt := packet{
			etherType: etherType, data: data, length: max(length, len(data)),
			checksum: checksumState(state % 3),
		}
		p, drop := d.decode(&pkt)
		if drop != notDropped {
			if p != (detector.Probe{}) {
				t.Fatalf("dropped for %q, but with a probe: %+v", drop, p)
			}
			return
		}
		if !p.Source.Addr().IsValid() || !p.Target.Addr().IsValid() || p.Source.Addr().Is4In6() {
			t.Fatalf("a probe from %v to %v", p.Source, p.Target)
		}
		agreesWithGopacket(t, &pkt, p)
	})
}

// agreesWithGopacket compares with gopacket's stock layers where those accept
// the packet and find the same transport.
func agreesWithGopacket(t *testing.T, pkt *packet, p detector.Probe) {
	t.Helper()
	stock := gopacket.NewPacket(pkt.data, layers.EthernetType(pkt.etherType).LayerType(), gopacket.NoCopy)
	if stock.ErrorLayer() != nil {
		return
	}
	if tcp, ok := stock.TransportLayer().(*layers.TCP); ok && p.Proto == detector.TCP {
		if uint16(tcp.SrcPort) != p.Source.Port() || uint16(tcp.DstPort) != p.Target.Port() || tcp.Seq != p.Header.Sequence {
			t.Fatalf("%v -> %v seq %d, gopacket says %v -> %v seq %d",
				p.Source, p.Target, p.Header.Sequence, tcp.SrcPort, tcp.DstPort, tcp.Seq)
		}
	}
	if udp, ok := stock.TransportLayer().(*layers.UDP); ok && p.Proto == detector.UDP {
		if uint16(udp.SrcPort) != p.Source.Port() || uint16(udp.DstPort) != p.Target.Port() {
			t.Fatalf("%v -> %v, gopacket says %v -> %v", p.Source, p.Target, udp.SrcPort, udp.DstPort)
		}
	}
}

// TestDecodeAllocatesNothing holds for hostile bytes too: samples with random
// bytes overwritten and cut at random.
func TestDecodeAllocatesNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var pkts []packet
	for _, sample := range append(samplePackets(t), split4(tcp4(t, detector.SYN), 8)...) {
		for range 2000 {
			data := bytes.Clone(sample)
			for range random.IntN(4) {
				data[random.IntN(len(data))] = byte(random.Uint32())
			}
			data = data[:random.IntN(len(data)+1)]
			for _, etherType := range []uint16{0x0800, 0x86dd, 0x8100} {
				pkts = append(pkts, packet{
					etherType: etherType, data: data, length: len(data) + random.IntN(2),
					checksum: checksumState(random.IntN(3)),
				})
			}
		}
	}
	d := newDecoder()
	// Each run takes every packet, so that one allocation for one of them shows;
	// the average over some runs hides what the runtime allocates now and then.
	allocs := testing.AllocsPerRun(10, func() {
		for i := range pkts {
			_, _ = d.decode(&pkts[i])
		}
	})
	if allocs != 0 {
		t.Errorf("decoding %d packets allocates %v times, want 0", len(pkts), allocs)
	}
}

func BenchmarkDecode(b *testing.B) {
	for name, data := range map[string][]byte{"IPv4": tcp4(b, detector.SYN), "IPv6": tcp6(b, detector.SYN)} {
		b.Run(name, func(b *testing.B) {
			d := newDecoder()
			pkt := packet{etherType: uint16(etherTypeOf(data)), data: data, length: len(data)}
			b.ReportAllocs()
			for b.Loop() {
				if _, drop := d.decode(&pkt); drop != notDropped {
					b.Fatal(drop)
				}
			}
		})
	}
}

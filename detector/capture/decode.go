package capture

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/portsnare/portsnare/detector"
)

// The decoder keeps two promises that gopacket's stock layers do not: hostile
// bytes allocate nothing (the stock layers build an error text for each fault
// and an object for each IPv6 option), and whatever Linux would answer is seen
// (the stock layers refuse legal two-byte IP options and malformed TCP options,
// which Linux accepts). So gopacket's DecodingLayerParser drives layers of our
// own; only the UDP header is decoded by the stock one.
//
// It refuses the lengths and checksums that Linux refuses, and sources that
// nobody can have, but sees a little more than Linux hands to TCP and UDP. Of IP
// options and extension headers it checks the lengths alone, so that a source
// route, an IPv6 option that asks to be discarded, or an AH, mobility, HIP or
// shim6 header does not hide a probe; and fragments count as soon as they show
// port and flags, even if the others never come. Whoever sends such things to a
// trap port is no ordinary client.
//
// Nor does a forged source hide a probe: a loopback address off the wire, or
// one of the host's own, is reported on purpose. Such sources must never be
// banned, but that is not decided here.

// packet is one frame from its network header on, wherever it came from.
type packet struct {
	at        time.Time
	etherType uint16 // what data starts with; VLAN tags are the decoder's job
	data      []byte // from the network header; a capture may have cut it short
	length    int    // bytes on the wire from the network header, at least len(data)
	iface     string // may be empty
	checksum  checksumState
}

// dropReason says why a packet yields no probe. It is an error so that a
// decoding layer can return it; being one byte, that allocates nothing.
type dropReason uint8

const (
	notDropped        dropReason = iota
	dropNotIP                    // neither IPv4 nor IPv6
	dropOtherProtocol            // neither TCP nor UDP
	dropFragment                 // a fragment that does not show, or not alone, what was probed
	dropMalformed                // a header that Linux refuses
	dropTruncated                // the capture ends before the headers do
	dropChecksum                 // a wrong checksum: Linux drops it unanswered
	dropBadSource                // a source that nobody can have
	dropReasons                  // how many there are
)

var dropReasonNames = [dropReasons]string{
	notDropped:        "",
	dropNotIP:         "not IP",
	dropOtherProtocol: "other protocol",
	dropFragment:      "fragment",
	dropMalformed:     "malformed",
	dropTruncated:     "truncated",
	dropChecksum:      "checksum",
	dropBadSource:     "bad source",
}

func (r dropReason) String() string { return dropReasonNames[r] }
func (r dropReason) Error() string  { return dropReasonNames[r] }

// decoder turns packets into probes. It reuses its memory, so it is not safe
// for concurrent use.
type decoder struct {
	ip     network
	tcp    tcpLayer
	udp    udpLayer
	halves halves

	ip4, ip6, vlan *gopacket.DecodingLayerParser
	decoded        []gopacket.LayerType
}

func newDecoder() *decoder {
	d := &decoder{decoded: make([]gopacket.LayerType, 0, 8)}
	d.tcp.ip, d.tcp.halves, d.udp.ip = &d.ip, &d.halves, &d.ip
	container := gopacket.DecodingLayerContainer(gopacket.DecodingLayerSparse(nil))
	for _, layer := range []gopacket.DecodingLayer{
		&vlanLayer{ip: &d.ip}, &ipv4Layer{network: &d.ip}, &ipv6Layer{network: &d.ip}, &d.tcp, &d.udp,
	} {
		container = container.Put(layer)
	}
	parser := func(first gopacket.LayerType) *gopacket.DecodingLayerParser {
		p := gopacket.NewDecodingLayerParser(first)
		p.SetDecodingLayerContainer(container)
		p.IgnoreUnsupported = true // decode sees from the last layer how far it came
		return p
	}
	d.ip4 = parser(layers.LayerTypeIPv4)
	d.ip6 = parser(layers.LayerTypeIPv6)
	d.vlan = parser(layers.LayerTypeDot1Q)
	return d
}

// decode returns the TCP segment or UDP datagram in pkt as a probe, whatever
// its TCP flags, or the reason why there is none. [isProbe] tells whether it
// can be one.
func (d *decoder) decode(pkt *packet) (detector.Probe, dropReason) {
	parser := d.parserFor(pkt.etherType)
	if parser == nil {
		return detector.Probe{}, dropNotIP
	}
	d.ip = network{at: pkt.at, cut: max(pkt.length-len(pkt.data), 0), checksum: pkt.checksum}
	if err := parser.DecodeLayers(pkt.data, &d.decoded); err != nil {
		return detector.Probe{}, reasonOf(err)
	}
	p := detector.Probe{
		At:        pkt.at,
		Header:    detector.HeaderFacts{TTL: d.ip.ttl, IPID: d.ip.id},
		IPOptions: d.ip.options,
		Interface: pkt.iface,
	}
	var sourcePort, targetPort uint16
	switch d.lastLayer() {
	case layers.LayerTypeTCP:
		p.Proto = detector.TCP
		p.Technique = detector.ClassifyTCP(d.tcp.flags)
		p.Header.Flags, p.Header.Window, p.Header.Sequence = d.tcp.flags, d.tcp.window, d.tcp.sequence
		sourcePort, targetPort = d.tcp.sourcePort, d.tcp.targetPort
	case layers.LayerTypeUDP:
		p.Proto, p.Technique = detector.UDP, detector.TechniqueUDP
		sourcePort, targetPort = uint16(d.udp.SrcPort), uint16(d.udp.DstPort)
	default:
		return detector.Probe{}, d.noTransport()
	}
	p.Source = netip.AddrPortFrom(d.ip.source, sourcePort)
	p.Target = netip.AddrPortFrom(d.ip.target, targetPort)
	return p, notDropped
}

// reasonOf returns the reason that a layer gave. Layers wrap nothing, and
// errors.As would allocate.
func reasonOf(err error) dropReason {
	if reason, ok := err.(dropReason); ok { //nolint:errorlint // see above
		return reason
	}
	return dropMalformed // a panic in a layer, which gopacket turns into an error
}

func (d *decoder) parserFor(etherType uint16) *gopacket.DecodingLayerParser {
	switch layers.EthernetType(etherType) {
	case layers.EthernetTypeIPv4:
		return d.ip4
	case layers.EthernetTypeIPv6:
		return d.ip6
	case layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ:
		return d.vlan
	}
	return nil
}

func (d *decoder) lastLayer() gopacket.LayerType {
	if len(d.decoded) == 0 {
		return gopacket.LayerTypeZero
	}
	return d.decoded[len(d.decoded)-1]
}

// noTransport says why the layers end before a transport header.
func (d *decoder) noTransport() dropReason {
	switch {
	case !d.ip.source.IsValid():
		return dropNotIP
	case d.ip.next != layers.IPProtocolTCP && d.ip.next != layers.IPProtocolUDP:
		return dropOtherProtocol
	}
	return d.ip.short() // gopacket stops at an empty payload
}

// isProbe reports whether a decoded packet can be a probe: a datagram, or a
// segment with neither ACK nor RST, which no established connection sends.
func isProbe(p *detector.Probe) bool {
	return p.Proto == detector.UDP || p.Header.Flags&(detector.ACK|detector.RST) == 0
}

// network is what both IP versions say, and what of the packet remains.
type network struct {
	source, target netip.Addr
	ttl            uint8
	id             uint16
	options        detector.Tri
	next           layers.IPProtocol // the transport, behind all extension headers
	at             time.Time
	fragment       bool   // one of several: the transport payload is not whole
	second         bool   // the fragment that starts eight bytes into the payload
	fragmentID     uint32 // that fragments of one datagram share
	payload        []byte // the transport header and what follows, as captured
	cut            int    // bytes at the end of payload that the capture left out
	checksum       checksumState
}

func (n *network) LayerPayload() []byte { return n.payload }

func (n *network) NextLayerType() gopacket.LayerType {
	switch n.next {
	case layers.IPProtocolTCP:
		return layers.LayerTypeTCP
	case layers.IPProtocolUDP:
		return layers.LayerTypeUDP
	}
	return gopacket.LayerTypePayload
}

// short says why bytes are missing: because of the capture, or on the wire.
func (n *network) short() dropReason {
	if n.cut > 0 {
		return dropTruncated
	}
	return dropMalformed
}

// trim cuts data, which starts at the IP header, to the total length that the
// header states; what follows is link padding.
func (n *network) trim(data []byte, total int) ([]byte, bool) {
	switch {
	case total > len(data)+n.cut:
		return nil, false // cut short on the wire
	case total <= len(data):
		n.cut = 0
		return data[:total], true
	}
	n.cut = total - len(data)
	return data, true
}

// readFragment takes where in the payload a fragment starts, in units of eight
// bytes, and whether others follow. It reports false if the fragment does not
// matter.
func (n *network) readFragment(offset uint16, more bool, id uint32, next layers.IPProtocol) bool {
	n.fragment = n.fragment || more || offset != 0
	n.second = offset == 1
	n.fragmentID = id
	return offset == 0 || n.second && next == layers.IPProtocolTCP
}

type ipv4Layer struct{ *network }

func (ipv4Layer) CanDecode() gopacket.LayerClass { return layers.LayerTypeIPv4 }

// DecodeFromBytes refuses what Linux refuses in ip_rcv_core.
func (l ipv4Layer) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	const minHeader = 20
	if len(data) < minHeader {
		return l.short()
	}
	headerLen := int(data[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(data[2:]))
	if data[0]>>4 != 4 || headerLen < minHeader || total < headerLen {
		return dropMalformed
	}
	data, ok := l.trim(data, total)
	if !ok {
		return dropMalformed
	}
	if len(data) < headerLen {
		return dropTruncated
	}
	if !l.headerChecksumOK(data[:headerLen]) {
		return dropChecksum
	}
	l.options = detector.TriOf(headerLen > minHeader)
	if !validIPv4Options(data[minHeader:headerLen]) {
		return dropMalformed
	}
	l.id = binary.BigEndian.Uint16(data[4:])
	l.ttl = data[8]
	l.next = layers.IPProtocol(data[9])
	field := binary.BigEndian.Uint16(data[6:])
	if !l.readFragment(field&0x1fff, field&0x2000 != 0, uint32(l.id), l.next) {
		return dropFragment
	}
	l.source = netip.AddrFrom4([4]byte(data[12:16]))
	l.target = netip.AddrFrom4([4]byte(data[16:20]))
	l.payload = data[headerLen:]
	if s := l.source; s.IsUnspecified() || s.IsMulticast() || s == broadcast4 {
		return dropBadSource
	}
	return nil
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// validIPv4Options reports whether every option lies within the header
// (RFC 791, section 3.1). Linux drops a packet where one does not.
func validIPv4Options(options []byte) bool {
	const end, noOperation = 0, 1
	for len(options) > 0 {
		switch {
		case options[0] == end:
			return true
		case options[0] == noOperation:
			options = options[1:]
		case len(options) < 2 || options[1] < 2 || int(options[1]) > len(options):
			return false
		default:
			options = options[options[1]:]
		}
	}
	return true
}

type ipv6Layer struct{ *network }

func (ipv6Layer) CanDecode() gopacket.LayerClass { return layers.LayerTypeIPv6 }

// DecodeFromBytes refuses what Linux refuses in ip6_rcv_core.
func (l ipv6Layer) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	const headerLen = 40
	if len(data) < headerLen {
		return l.short()
	}
	payloadLen := int(binary.BigEndian.Uint16(data[4:]))
	if data[0]>>4 != 6 || payloadLen == 0 { // jumbograms are longer than any probe
		return dropMalformed
	}
	data, ok := l.trim(data, headerLen+payloadLen)
	if !ok {
		return dropMalformed
	}
	l.ttl = data[7]
	l.source = netip.AddrFrom16([16]byte(data[8:24]))
	l.target = netip.AddrFrom16([16]byte(data[24:40]))
	// An IPv4-mapped source on the wire would frame an IPv4 host (RFC 4942,
	// section 2.2). This is the one thing that some Linux versions answer and
	// that is refused here: better to miss a neighbour's scan than to accuse.
	if s := l.source; s.IsUnspecified() || s.IsMulticast() || s.Is4In6() {
		return dropBadSource
	}
	return l.walk(layers.IPProtocol(data[6]), data[headerLen:])
}

// Extension headers that gopacket has no name for.
const (
	protocolMobility layers.IPProtocol = 135 // RFC 6275
	protocolHIP      layers.IPProtocol = 139 // RFC 7401
	protocolShim6    layers.IPProtocol = 140 // RFC 5533
)

// isIPv6Extension tells of each protocol whether its header may stand before
// TCP or UDP.
var isIPv6Extension = [256]bool{
	layers.IPProtocolIPv6HopByHop:    true,
	layers.IPProtocolIPv6Routing:     true,
	layers.IPProtocolIPv6Fragment:    true,
	layers.IPProtocolAH:              true,
	layers.IPProtocolIPv6Destination: true,
	protocolMobility:                 true,
	protocolHIP:                      true,
	protocolShim6:                    true,
}

// walk goes over the extension headers to the transport header. There is no
// limit on their number, because Linux has none: every header takes at least
// eight of the packet's bytes, and that bounds the walk.
func (l ipv6Layer) walk(next layers.IPProtocol, data []byte) error {
	const minLength = 8
	for first := true; isIPv6Extension[next]; first = false {
		if len(data) < minLength {
			return l.short()
		}
		if next == layers.IPProtocolIPv6HopByHop && !first {
			return dropMalformed // RFC 8200, section 4.1
		}
		if err := l.readExtension(next, data); err != nil {
			return err
		}
		length := extensionLength(next, data[1])
		if len(data) < length {
			return l.short()
		}
		next, data = layers.IPProtocol(data[0]), data[length:]
	}
	l.next, l.payload = next, data
	return nil
}

// readExtension takes the fixed part of an extension header.
func (l ipv6Layer) readExtension(kind layers.IPProtocol, header []byte) error {
	switch kind {
	case layers.IPProtocolIPv6Routing:
		if segmentsLeft := header[3]; segmentsLeft != 0 {
			return dropMalformed // the packet is to travel on (RFC 8200, section 4.4)
		}
	case layers.IPProtocolIPv6Fragment:
		// At the start and with no more to follow it is an atomic fragment: a
		// whole packet (RFC 6946).
		field := binary.BigEndian.Uint16(header[2:])
		id := binary.BigEndian.Uint32(header[4:])
		if !l.readFragment(field>>3, field&1 != 0, id, layers.IPProtocol(header[0])) {
			return dropFragment
		}
	}
	return nil
}

// extensionLength returns how many bytes an extension header takes, by its
// second byte.
func extensionLength(kind layers.IPProtocol, field byte) int {
	switch kind {
	case layers.IPProtocolIPv6Fragment:
		return 8 // the byte is reserved, not a length
	case layers.IPProtocolAH:
		return (int(field) + 2) * 4 // RFC 4302, section 2.2
	}
	return (int(field) + 1) * 8 // 0 is legal and means 8 bytes
}

// vlanLayer is all VLAN tags before the IP header. Linux takes off any number
// of them.
type vlanLayer struct {
	ip      *network
	next    layers.EthernetType
	payload []byte
}

func (*vlanLayer) CanDecode() gopacket.LayerClass      { return layers.LayerTypeDot1Q }
func (l *vlanLayer) NextLayerType() gopacket.LayerType { return l.next.LayerType() }
func (l *vlanLayer) LayerPayload() []byte              { return l.payload }

func (l *vlanLayer) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	for {
		if len(data) < 4 {
			return l.ip.short()
		}
		l.next, l.payload = layers.EthernetType(binary.BigEndian.Uint16(data[2:])), data[4:]
		if l.next != layers.EthernetTypeDot1Q && l.next != layers.EthernetTypeQinQ {
			return nil
		}
		data = l.payload
	}
}

type tcpLayer struct {
	ip     *network
	halves *halves
	whole  [16]byte // two halves joined

	sourcePort, targetPort uint16
	sequence               uint32
	flags                  detector.TCPFlags
	window                 uint16
}

func (*tcpLayer) CanDecode() gopacket.LayerClass    { return layers.LayerTypeTCP }
func (*tcpLayer) NextLayerType() gopacket.LayerType { return gopacket.LayerTypePayload }
func (*tcpLayer) LayerPayload() []byte              { return nil }

// DecodeFromBytes refuses what Linux refuses in tcp_v4_rcv. TCP options do not
// matter: Linux answers a SYN whatever stands in them. Of a fragment it takes
// what is there.
func (l *tcpLayer) DecodeFromBytes(data []byte, _ gopacket.DecodeFeedback) error {
	const minHeader = 20
	ip := l.ip
	if ip.fragment {
		var why dropReason
		if data, why = l.upToWindow(data); why != notDropped {
			return why
		}
	} else if len(data) < minHeader {
		return ip.short()
	}
	l.sourcePort = binary.BigEndian.Uint16(data)
	l.targetPort = binary.BigEndian.Uint16(data[2:])
	l.sequence = binary.BigEndian.Uint32(data[4:])
	l.flags = detector.TCPFlags(data[13])
	l.window = binary.BigEndian.Uint16(data[14:])
	if ip.fragment {
		return nil
	}
	if offset := int(data[12]>>4) * 4; offset < minHeader || offset > len(data)+ip.cut {
		return dropMalformed
	}
	return ip.verify(data, data[16:18])
}

// upToWindow returns the first sixteen bytes of a segment of which data is a
// fragment, or the reason why they are not there yet. Like Linux it leaves out
// what goes beyond a multiple of eight bytes.
func (l *tcpLayer) upToWindow(data []byte) ([]byte, dropReason) {
	const upTo, unit = 16, 8
	switch {
	case len(data) < unit:
		return nil, l.ip.short()
	case len(data) >= upTo && !l.ip.second:
		return data[:upTo], notDropped
	}
	h := half{
		of: datagramID{l.ip.source, l.ip.target, l.ip.fragmentID},
		at: l.ip.at, second: l.ip.second, bytes: [unit]byte(data),
	}
	if !l.halves.join(h, &l.whole) {
		return nil, dropFragment
	}
	return l.whole[:], notDropped
}

// udpLayer is gopacket's UDP header, without its error texts.
type udpLayer struct {
	layers.UDP
	ip *network
}

// LayerPayload ends the decoding: what a datagram carries does not matter.
func (*udpLayer) LayerPayload() []byte { return nil }

// DecodeFromBytes refuses what Linux refuses in __udp4_lib_rcv and
// __udp6_lib_rcv.
func (l *udpLayer) DecodeFromBytes(data []byte, df gopacket.DecodeFeedback) error {
	const header = 8
	if len(data) < header {
		return l.ip.short()
	}
	length := int(binary.BigEndian.Uint16(data[4:]))
	if length == 0 && l.ip.source.Is6() {
		length = len(data) + l.ip.cut
	}
	if length < header || length > len(data)+l.ip.cut && !l.ip.fragment {
		return dropMalformed
	}
	if err := l.UDP.DecodeFromBytes(data, df); err != nil {
		return dropMalformed
	}
	if l.ip.fragment {
		return nil
	}
	if l.Checksum == 0 {
		if l.ip.source.Is4() {
			return nil // the sender computed none (RFC 768)
		}
		return dropChecksum // IPv6 allows that for tunnels only (RFC 8200, section 8.1)
	}
	if length < len(data) {
		data = data[:length]
	}
	return l.ip.verify(data, data[6:8])
}

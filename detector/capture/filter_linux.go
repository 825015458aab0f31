package capture

import (
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// The kernel filter lets through what may be a probe and nothing else, so that
// ordinary traffic costs a few instructions in the kernel and nothing here.
// Where it cannot be exact (fragments, IPv6 extension headers, sets with very
// many ranges or interfaces) it lets through more, never less: the sniffer
// checks everything again but the port, which the engine does. Only requests of
// this host behind extension headers it leaves out; nobody sends such.

// A filter says which packets the kernel hands over.
type filter struct {
	tcp, udp detector.PortSet

	requests   bool // whether to pass this host's datagrams from UDP trap ports
	broadcasts bool // whether to pass frames addressed to many hosts

	only          []uint32 // indexes of the interfaces wanted; nil means all
	except        []uint32 // indexes of interfaces not wanted
	skipLoopbacks bool
}

// Limits that keep a program below the kernel's 4,096 instructions.
const (
	maxPortRanges      = 320 // per protocol
	maxInterfaceRanges = 64
)

const (
	vlanIDMask  = 0x0fff // of a VLAN tag; what remains is priority
	wholePacket = 0xffff // whole, so that checksums can be verified
)

// program returns the filter as a program for a packet socket of type
// SOCK_DGRAM, where a packet starts at its network header. Each port set is
// reduced to at most maxRanges ranges.
//
// The order is chosen for the traffic that is most of all: segments of
// established connections leave after a dozen instructions, and what is asked
// of the frame (addressee, VLAN, interface) is asked last.
func (f *filter) program(maxRanges int) []bpf.Instruction {
	p := new(program)
	ipv4, ipv6, tagged := p.label(), p.label(), p.label()
	tcp, tcpPort, udp := p.label(), p.label(), p.label()
	udpMatch, match, frame, drop := p.label(), p.label(), p.label(), p.label()

	p.emit(bpf.LoadExtension{Num: bpf.ExtProto})
	p.jumpIf(bpf.JumpEqual, unix.ETH_P_IP, ipv4)
	p.jumpIf(bpf.JumpEqual, unix.ETH_P_IPV6, ipv6)
	p.jumpIf(bpf.JumpEqual, unix.ETH_P_8021Q, tagged)
	p.jumpIf(bpf.JumpEqual, unix.ETH_P_8021AD, tagged)
	p.jump(drop)

	p.place(ipv4)
	p.ipv4(tcp, tcpPort, udp, match, drop)
	p.place(ipv6)
	p.ipv6(tcp, udp, match, drop)

	// The kernel has taken off one tag already. A second one of VLAN 0 is also
	// taken off and the packet received; any other VLAN's packet comes again
	// on the VLAN's own device, or nobody receives it.
	p.place(tagged)
	p.emit(bpf.LoadAbsolute{Off: 0, Size: 2})
	p.jumpIf(bpf.JumpBitsSet, vlanIDMask, drop)
	p.jump(match)

	p.place(tcp)
	p.emit(bpf.LoadIndirect{Off: 13, Size: 1})
	p.jumpIf(bpf.JumpBitsSet, uint32(detector.ACK|detector.RST), drop)
	p.place(tcpPort)
	p.emit(bpf.LoadIndirect{Off: 2, Size: 2})
	p.search(portSpans(f.tcp, maxRanges), match, drop)

	p.place(udp)
	f.loadUDPPort(p)
	p.search(portSpans(f.udp, maxRanges), udpMatch, drop)

	p.place(udpMatch)
	if f.requests {
		p.emit(bpf.LoadExtension{Num: bpf.ExtType})
		p.jumpIf(bpf.JumpEqual, unix.PACKET_OUTGOING, frame)
	}
	p.place(match)
	f.checkAddressee(p, frame, drop)
	p.place(frame)
	f.checkFrame(p, drop)
	p.emit(bpf.RetConstant{Val: wholePacket})
	p.place(drop)
	p.emit(bpf.RetConstant{Val: 0})
	return p.link()
}

// ipv4 goes to the transport with its header's offset in X.
func (p *program) ipv4(tcp, tcpPort, udp, match, drop label) {
	// Of the fragments the first shows the port. Only where that is too short
	// for the flags too does one start at the eighth byte, unit 1.
	second := p.label()
	p.emit(bpf.LoadAbsolute{Off: 6, Size: 2})
	p.emit(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x1fff})
	p.jumpIf(bpf.JumpEqual, 1, second)
	p.jumpIf(bpf.JumpNotEqual, 0, drop)
	p.emit(bpf.LoadMemShift{Off: 0})
	p.emit(bpf.LoadAbsolute{Off: 9, Size: 1})
	p.jumpIf(bpf.JumpEqual, uint32(detector.UDP), udp)
	p.jumpIf(bpf.JumpNotEqual, uint32(detector.TCP), drop)
	// A first fragment may end before the flags, and a load from beyond the
	// end drops the packet.
	p.emit(bpf.LoadAbsolute{Off: 6, Size: 2})
	p.jumpIf(bpf.JumpBitsSet, 0x2000, tcpPort)
	p.jump(tcp)
	p.place(second)
	p.emit(bpf.LoadAbsolute{Off: 9, Size: 1})
	p.jumpIf(bpf.JumpEqual, uint32(detector.TCP), match)
	p.jump(drop)
}

// ipv6 does the same, or goes to match if extension headers come first; those
// are rare, and the decoder walks them.
func (p *program) ipv6(tcp, udp, match, drop label) {
	p.emit(bpf.LoadConstant{Dst: bpf.RegX, Val: 40})
	p.emit(bpf.LoadAbsolute{Off: 6, Size: 1})
	p.jumpIf(bpf.JumpEqual, uint32(detector.TCP), tcp)
	p.jumpIf(bpf.JumpEqual, uint32(detector.UDP), udp)
	for protocol, is := range isIPv6Extension {
		if is {
			p.jumpIf(bpf.JumpEqual, uint32(protocol), match)
		}
	}
	p.jump(drop)
}

// loadUDPPort loads the target's port, or the source's of a datagram of this
// host.
func (f *filter) loadUDPPort(p *program) {
	received, loaded := p.label(), p.label()
	if f.requests {
		p.emit(bpf.LoadExtension{Num: bpf.ExtType})
		p.jumpIf(bpf.JumpNotEqual, unix.PACKET_OUTGOING, received)
		p.emit(bpf.LoadIndirect{Off: 0, Size: 2})
		p.jump(loaded)
	}
	p.place(received)
	p.emit(bpf.LoadIndirect{Off: 2, Size: 2})
	p.place(loaded)
}

// checkAddressee drops frames that are not for this host.
func (f *filter) checkAddressee(p *program, frame, drop label) {
	p.emit(bpf.LoadExtension{Num: bpf.ExtType})
	if f.broadcasts {
		p.jumpIf(bpf.JumpEqual, unix.PACKET_BROADCAST, frame)
		p.jumpIf(bpf.JumpEqual, unix.PACKET_MULTICAST, frame)
	}
	p.jumpIf(bpf.JumpNotEqual, unix.PACKET_HOST, drop)
}

// checkFrame drops frames that come again, or on interfaces that are not wanted.
func (f *filter) checkFrame(p *program, drop label) {
	untagged := p.label()
	p.emit(bpf.LoadExtension{Num: bpf.ExtVLANTagPresent}) // without a tag its value may be stale
	p.jumpIf(bpf.JumpEqual, 0, untagged)
	p.emit(bpf.LoadExtension{Num: bpf.ExtVLANTag})
	p.jumpIf(bpf.JumpBitsSet, vlanIDMask, drop)
	p.place(untagged)

	if f.skipLoopbacks {
		p.emit(bpf.LoadExtension{Num: bpf.ExtLinkLayerType})
		p.jumpIf(bpf.JumpEqual, unix.ARPHRD_LOOPBACK, drop)
	}
	if f.only != nil {
		wanted := p.label()
		p.emit(bpf.LoadExtension{Num: bpf.ExtInterfaceIndex})
		p.search(coarsen(indexSpans(f.only), maxInterfaceRanges), wanted, drop)
		p.place(wanted)
	}
	// To reject must not become too much, so above the limit none is rejected here.
	if except := indexSpans(f.except); len(except) > 0 && len(except) <= maxInterfaceRanges {
		others := p.label()
		p.emit(bpf.LoadExtension{Num: bpf.ExtInterfaceIndex})
		p.search(except, drop, others)
		p.place(others)
	}
}

// A span is the numbers first to last, both included.
type span struct{ first, last uint32 }

// portSpans returns the set as at most limit spans.
func portSpans(set detector.PortSet, limit int) []span {
	spans := make([]span, 0, len(set.Ranges()))
	for _, r := range set.Ranges() {
		spans = append(spans, span{uint32(r.First), uint32(r.Last)})
	}
	return coarsen(spans, limit)
}

// indexSpans returns numbers as sorted spans, runs of neighbours in one.
func indexSpans(numbers []uint32) []span {
	var spans []span
	for _, n := range slices.Compact(slices.Sorted(slices.Values(numbers))) {
		if last := len(spans) - 1; last >= 0 && spans[last].last+1 == n {
			spans[last].last = n
			continue
		}
		spans = append(spans, span{n, n})
	}
	return spans
}

// coarsen returns at most limit spans that cover the given sorted ones, closing
// the smallest gaps.
func coarsen(spans []span, limit int) []span {
	limit = max(limit, 1)
	excess := len(spans) - limit
	if excess <= 0 {
		return spans
	}
	gap := func(i int) uint32 { return spans[i+1].first - spans[i].last }
	gaps := make([]uint32, len(spans)-1)
	for i := range gaps {
		gaps[i] = gap(i)
	}
	slices.Sort(gaps)
	widest := gaps[excess-1] // the widest gap to close
	below, _ := slices.BinarySearch(gaps, widest)
	equal := excess - below // and how many of that width

	covering := make([]span, 1, limit)
	covering[0] = spans[0]
	for i, s := range spans[1:] {
		g := gap(i)
		if g == widest {
			equal--
		}
		if g < widest || g == widest && equal >= 0 {
			covering[len(covering)-1].last = s.last
			continue
		}
		covering = append(covering, s)
	}
	return covering
}

// A program is a classic BPF program under construction. Its jumps go forward
// only, to labels; until link, a bpf.Jump holds the number of its label.
type program struct {
	code   []bpf.Instruction
	places []int // of each label
}

type label int

func (p *program) label() label {
	p.places = append(p.places, 0)
	return label(len(p.places) - 1)
}

func (p *program) place(l label) { p.places[l] = len(p.code) }

func (p *program) emit(i bpf.Instruction) { p.code = append(p.code, i) }

func (p *program) jump(to label) { p.emit(bpf.Jump{Skip: uint32(to)}) }

// jumpIf goes to a label if the accumulator passes the test. A conditional
// jump reaches 255 instructions, a plain one all of them.
func (p *program) jumpIf(test bpf.JumpTest, value uint32, to label) {
	p.emit(bpf.JumpIf{Cond: test, Val: value, SkipFalse: 1})
	p.jump(to)
}

// search goes to yes if the accumulator lies in one of spans, which are sorted
// and apart, and to no otherwise.
func (p *program) search(spans []span, yes, no label) {
	if len(spans) == 0 {
		p.jump(no)
		return
	}
	p.jumpIf(bpf.JumpLessThan, spans[0].first, no)
	p.searchFrom(spans, yes, no)
}

// searchFrom is search for an accumulator of at least spans[0].first.
func (p *program) searchFrom(spans []span, yes, no label) {
	if len(spans) == 1 {
		p.emit(bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: spans[0].last, SkipTrue: 1})
		p.jump(yes)
		p.jump(no)
		return
	}
	upper := p.label()
	middle := len(spans) / 2
	p.jumpIf(bpf.JumpGreaterOrEqual, spans[middle].first, upper)
	p.searchFrom(spans[:middle], yes, no)
	p.place(upper)
	p.searchFrom(spans[middle:], yes, no)
}

// link resolves the labels.
func (p *program) link() []bpf.Instruction {
	for i, instruction := range p.code {
		if j, ok := instruction.(bpf.Jump); ok {
			p.code[i] = bpf.Jump{Skip: uint32(p.places[j.Skip] - i - 1)}
		}
	}
	return p.code
}

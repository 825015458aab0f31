package capture

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// frameFacts are what the kernel knows of a frame besides its bytes.
type frameFacts struct {
	etherType, packetType, index, linkType uint32
	tagged                                 bool
	tag                                    uint32
}

// filterVM returns a machine that runs the program on frames with such facts.
// It knows no extensions, but for one frame they are constants.
func filterVM(t testing.TB, program []bpf.Instruction, facts frameFacts) *bpf.VM {
	t.Helper()
	values := map[bpf.Extension]uint32{
		bpf.ExtProto:          facts.etherType,
		bpf.ExtType:           facts.packetType,
		bpf.ExtInterfaceIndex: facts.index,
		bpf.ExtLinkLayerType:  facts.linkType,
		bpf.ExtVLANTag:        facts.tag,
	}
	if facts.tagged {
		values[bpf.ExtVLANTagPresent] = 1
	}
	program = slices.Clone(program)
	for i, instruction := range program {
		if load, ok := instruction.(bpf.LoadExtension); ok {
			program[i] = bpf.LoadConstant{Dst: bpf.RegA, Val: values[load.Num]}
		}
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// passes reports whether the machine's filter lets the packet through.
func passes(t testing.TB, vm *bpf.VM, packet []byte) bool {
	t.Helper()
	n, err := vm.Run(packet)
	if err != nil {
		t.Fatal(err)
	}
	if n != 0 && n != wholePacket {
		t.Fatalf("the filter passes %d bytes, want none or all", n)
	}
	return n != 0
}

// tcpHeader returns a segment's header.
func tcpHeader(port uint16, flags detector.TCPFlags) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], port)
	h[12] = 5 << 4
	h[13] = byte(flags)
	return h
}

func udpDatagram(port uint16) []byte {
	h := make([]byte, 12)
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], port)
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	return h
}

// inIPv4 returns payload in an IPv4 packet with so many bytes of options; the
// fragment field holds flags and offset.
func inIPv4(proto detector.Proto, fragment uint16, options int, payload []byte) []byte {
	h := make([]byte, 20+options)
	h[0] = 4<<4 | byte(len(h)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	binary.BigEndian.PutUint16(h[6:], fragment)
	h[8], h[9] = 64, byte(proto)
	return slices.Concat(h, payload)
}

func inIPv6(next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 6<<4, next, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	return slices.Concat(h, payload)
}

func TestFilterPackets(t *testing.T) {
	const tcp, udp = detector.TCP, detector.UDP
	const listed, unlisted = 22, 8080
	syn := tcpHeader(listed, detector.SYN)
	f := filter{
		tcp: detector.NewPortSet(detector.PortRange{First: 1, Last: 25}, detector.PortRange{First: 3389, Last: 3389}),
		udp: detector.NewPortSet(detector.PortRange{First: 53, Last: 53}),
	}
	program := f.program(maxPortRanges)

	tests := map[string]struct {
		etherType uint32
		data      []byte
		want      bool
	}{
		"SYN to a trap port":              {unix.ETH_P_IP, inIPv4(tcp, 0, 0, syn), true},
		"SYN to another port":             {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(unlisted, detector.SYN)), false},
		"SYN to a port listed for UDP":    {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(53, detector.SYN)), false},
		"FIN":                             {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(listed, detector.FIN)), true},
		"no flags":                        {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(listed, 0)), true},
		"ECN SYN":                         {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(listed, detector.SYN|detector.ECE|detector.CWR)), true},
		"established":                     {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(listed, detector.ACK|detector.PSH)), false},
		"SYN-ACK":                         {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(listed, detector.SYN|detector.ACK)), false},
		"RST":                             {unix.ETH_P_IP, inIPv4(tcp, 0, 0, tcpHeader(listed, detector.RST)), false},
		"UDP to a trap port":              {unix.ETH_P_IP, inIPv4(udp, 0, 0, udpDatagram(53)), true},
		"UDP to another port":             {unix.ETH_P_IP, inIPv4(udp, 0, 0, udpDatagram(listed)), false},
		"ICMP":                            {unix.ETH_P_IP, inIPv4(1, 0, 0, syn), false},
		"SCTP":                            {unix.ETH_P_IP, inIPv4(132, 0, 0, syn), false},
		"IP options":                      {unix.ETH_P_IP, inIPv4(tcp, 0, 40, syn), true},
		"IP options, established":         {unix.ETH_P_IP, inIPv4(tcp, 0, 40, tcpHeader(listed, detector.ACK)), false},
		"do not fragment":                 {unix.ETH_P_IP, inIPv4(tcp, 0x4000, 0, syn), true},
		"tiny first fragment":             {unix.ETH_P_IP, inIPv4(tcp, 0x2000, 0, syn[:8]), true},
		"tiny first fragment, other port": {unix.ETH_P_IP, inIPv4(tcp, 0x2000, 0, tcpHeader(unlisted, 0)[:8]), false},
		"first fragment of UDP":           {unix.ETH_P_IP, inIPv4(udp, 0x2000, 0, udpDatagram(53)[:8]), true},
		"fragment from the eighth byte":   {unix.ETH_P_IP, inIPv4(tcp, 0x2001, 0, syn), true},
		"the same, and the last":          {unix.ETH_P_IP, inIPv4(tcp, 0x0001, 0, syn), true},
		"the same of UDP":                 {unix.ETH_P_IP, inIPv4(udp, 0x0001, 0, syn), false},
		"fragment from the sixteenth":     {unix.ETH_P_IP, inIPv4(tcp, 0x2002, 0, syn), false},
		"last fragment":                   {unix.ETH_P_IP, inIPv4(tcp, 0x0100, 0, syn), false},
		"cut before the flags":            {unix.ETH_P_IP, inIPv4(tcp, 0, 0, syn[:13]), false},
		"cut before the port":             {unix.ETH_P_IP, inIPv4(udp, 0, 0, udpDatagram(53)[:3]), false},
		"nothing":                         {unix.ETH_P_IP, nil, false},

		"IPv6 SYN":                 {unix.ETH_P_IPV6, inIPv6(6, syn), true},
		"IPv6 SYN to another port": {unix.ETH_P_IPV6, inIPv6(6, tcpHeader(unlisted, detector.SYN)), false},
		"IPv6 established":         {unix.ETH_P_IPV6, inIPv6(6, tcpHeader(listed, detector.ACK)), false},
		"IPv6 UDP":                 {unix.ETH_P_IPV6, inIPv6(17, udpDatagram(53)), true},
		"IPv6 UDP to another port": {unix.ETH_P_IPV6, inIPv6(17, udpDatagram(54)), false},
		"IPv6 ICMP":                {unix.ETH_P_IPV6, inIPv6(58, syn), false},
		"IPv6 ESP":                 {unix.ETH_P_IPV6, inIPv6(50, syn), false},
		"hop-by-hop options":       {unix.ETH_P_IPV6, inIPv6(0, syn), true},
		"routing header":           {unix.ETH_P_IPV6, inIPv6(43, syn), true},
		"fragment header":          {unix.ETH_P_IPV6, inIPv6(44, syn), true},
		"authentication header":    {unix.ETH_P_IPV6, inIPv6(51, syn), true},
		"destination options":      {unix.ETH_P_IPV6, inIPv6(60, syn), true},

		"second tag of VLAN 0":         {unix.ETH_P_8021Q, append([]byte{0xe0, 0x00, 0x08, 0x00}, inIPv4(tcp, 0, 0, syn)...), true},
		"second tag of VLAN 5":         {unix.ETH_P_8021Q, append([]byte{0xe0, 0x05, 0x08, 0x00}, inIPv4(tcp, 0, 0, syn)...), false},
		"second service tag of VLAN 0": {unix.ETH_P_8021AD, append([]byte{0x00, 0x00, 0x08, 0x00}, inIPv4(tcp, 0, 0, syn)...), true},
		"ARP":                          {0x0806, inIPv4(tcp, 0, 0, syn), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := passes(t, filterVM(t, program, frameFacts{etherType: tt.etherType}), tt.data); got != tt.want {
				t.Errorf("passed: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestFilterFrames(t *testing.T) {
	everyOther := make([]uint32, 2*maxInterfaceRanges)
	for i := range everyOther {
		everyOther[i] = uint32(2*i + 1)
	}
	tests := map[string]struct {
		filter filter
		facts  frameFacts
		want   bool
	}{
		"for us":                             {filter{}, frameFacts{index: 3}, true},
		"for all":                            {filter{}, frameFacts{packetType: 1}, false},
		"for another host":                   {filter{}, frameFacts{packetType: 3}, false},
		"going out":                          {filter{}, frameFacts{packetType: 4}, false},
		"for all, wanted":                    {filter{broadcasts: true}, frameFacts{packetType: 1}, true},
		"for a group, wanted":                {filter{broadcasts: true}, frameFacts{packetType: 2}, true},
		"for another host, for all wanted":   {filter{broadcasts: true}, frameFacts{packetType: 3}, false},
		"our own to a group, for all wanted": {filter{broadcasts: true}, frameFacts{packetType: 5}, false},
		"segment going out":                  {filter{requests: true}, frameFacts{packetType: 4}, false},
		"priority tag":                       {filter{}, frameFacts{tagged: true, tag: 0xe000}, true},
		"VLAN 5":                             {filter{}, frameFacts{tagged: true, tag: 0xe005}, false},
		"stale tag":                          {filter{}, frameFacts{tag: 5}, true},
		"loopback":                           {filter{}, frameFacts{linkType: unix.ARPHRD_LOOPBACK}, true},
		"loopback not wanted":                {filter{skipLoopbacks: true}, frameFacts{linkType: unix.ARPHRD_LOOPBACK}, false},
		"loopback not wanted, Ethernet":      {filter{skipLoopbacks: true}, frameFacts{linkType: 1}, true},
		"named":                              {filter{only: []uint32{9, 3, 4}}, frameFacts{index: 4}, true},
		"not named":                          {filter{only: []uint32{9, 3, 4}}, frameFacts{index: 5}, false},
		"none of the named exists":           {filter{only: []uint32{}}, frameFacts{index: 5}, false},
		"port of a bridge":                   {filter{except: []uint32{7}}, frameFacts{index: 7}, false},
		"beside a port of a bridge":          {filter{except: []uint32{7}}, frameFacts{index: 8}, true},
		"very many named":                    {filter{only: everyOther}, frameFacts{index: 255}, true},
		"outside very many named":            {filter{only: everyOther}, frameFacts{index: 256}, false},
		"more ports of bridges than we list": {filter{except: everyOther}, frameFacts{index: 1}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.filter.tcp = detector.NewPortSet(detector.PortRange{First: 22, Last: 22})
			tt.facts.etherType = unix.ETH_P_IP
			packet := inIPv4(detector.TCP, 0, 0, tcpHeader(22, detector.SYN))
			vm := filterVM(t, tt.filter.program(maxPortRanges), tt.facts)
			if got := passes(t, vm, packet); got != tt.want {
				t.Errorf("passed: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestFilterRequests(t *testing.T) {
	const trap = 32771
	from := func(source, target uint16) []byte {
		d := udpDatagram(target)
		binary.BigEndian.PutUint16(d, source)
		return d
	}
	const udp = detector.UDP
	tests := map[string]struct {
		etherType uint32
		data      []byte
		out, in   bool // whether it passes leaving and arriving
	}{
		"from a trap port":             {unix.ETH_P_IP, inIPv4(udp, 0, 0, from(trap, 53)), true, false},
		"from a trap port, IPv6":       {unix.ETH_P_IPV6, inIPv6(17, from(trap, 53)), true, false},
		"from a trap port, IP options": {unix.ETH_P_IP, inIPv4(udp, 0, 8, from(trap, 53)), true, false},
		"first fragment":               {unix.ETH_P_IP, inIPv4(udp, 0x2000, 0, from(trap, 53)), true, false},
		"second fragment":              {unix.ETH_P_IP, inIPv4(udp, 0x0001, 0, from(trap, 53)), false, false},
		"to a trap port":               {unix.ETH_P_IP, inIPv4(udp, 0, 0, from(53, trap)), false, true},
		"to a trap port, IPv6":         {unix.ETH_P_IPV6, inIPv6(17, from(53, trap)), false, true},
		"between trap ports":           {unix.ETH_P_IP, inIPv4(udp, 0, 0, from(trap, trap)), true, true},
		"other ports":                  {unix.ETH_P_IP, inIPv4(udp, 0, 0, from(53, 53)), false, false},
		"segment to a trap port":       {unix.ETH_P_IP, inIPv4(detector.TCP, 0, 0, tcpHeader(trap, detector.SYN)), false, true},
		"behind an extension header":   {unix.ETH_P_IPV6, inIPv6(60, from(trap, 53)), false, true},
	}
	only := []uint32{3}
	f := filter{tcp: onePort(trap), udp: onePort(trap), requests: true, only: only}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			facts := frameFacts{etherType: tt.etherType, index: 3}
			if got := passes(t, filterVM(t, f.program(maxPortRanges), facts), tt.data); got != tt.in {
				t.Errorf("passes when it arrives: %v, want %v", got, tt.in)
			}
			facts.packetType = unix.PACKET_OUTGOING
			if got := passes(t, filterVM(t, f.program(maxPortRanges), facts), tt.data); got != tt.out {
				t.Errorf("passes when it leaves: %v, want %v", got, tt.out)
			}
			facts.index = 4
			if passes(t, filterVM(t, f.program(maxPortRanges), facts), tt.data) {
				t.Error("passes on an interface that is not wanted")
			}
		})
	}
}

// portSets are sets of every shape, from none to more ranges than fit.
func portSets() map[string]detector.PortSet {
	random := rand.New(rand.NewPCG(1, 2))
	var few, most, scattered []detector.PortRange
	for range 60 {
		port := uint16(random.Uint32())
		few = append(few, detector.PortRange{First: port, Last: port})
	}
	for range maxPortRanges {
		first := uint16(random.Uint32())
		most = append(most, detector.PortRange{First: first, Last: first + uint16(random.IntN(20))})
	}
	for port := 1; port < 1<<16; port += 2 {
		scattered = append(scattered, detector.PortRange{First: uint16(port), Last: uint16(port)})
	}
	return map[string]detector.PortSet{
		"none":      {},
		"all":       detector.NewPortSet(detector.PortRange{First: 0, Last: 65535}),
		"ends":      detector.NewPortSet(detector.PortRange{First: 0, Last: 0}, detector.PortRange{First: 65535, Last: 65535}),
		"few":       detector.NewPortSet(few...),
		"most":      detector.NewPortSet(most...),
		"scattered": detector.NewPortSet(scattered...),
	}
}

func TestFilterPorts(t *testing.T) {
	for name, set := range portSets() {
		t.Run(name, func(t *testing.T) {
			f := filter{tcp: set, udp: set}
			vm := filterVM(t, f.program(maxPortRanges), frameFacts{etherType: unix.ETH_P_IP})
			exact := len(set.Ranges()) <= maxPortRanges
			for port := range 1 << 16 {
				got := passes(t, vm, inIPv4(detector.TCP, 0, 0, tcpHeader(uint16(port), detector.SYN)))
				want := set.Contains(uint16(port))
				if got != want && (exact || want) {
					t.Fatalf("port %d passed: %v, want %v", port, got, want)
				}
			}
		})
	}
}

func TestFilterFitsTheKernel(t *testing.T) {
	const kernelLimit = 4096
	scattered := portSets()["scattered"]
	apart := make([]uint32, maxInterfaceRanges)
	for i := range apart {
		apart[i] = uint32(10 * i)
	}
	f := filter{tcp: scattered, udp: scattered, requests: true, broadcasts: true, only: apart, except: apart, skipLoopbacks: true}
	program := f.program(maxPortRanges)
	if len(program) > kernelLimit {
		t.Errorf("the longest program has %d instructions, want at most %d", len(program), kernelLimit)
	}
	if _, err := bpf.Assemble(program); err != nil {
		t.Error(err)
	}
}

func TestCoarsen(t *testing.T) {
	spans := []span{{1, 1}, {3, 3}, {5, 9}, {20, 20}, {22, 22}, {40, 50}}
	tests := map[string]struct {
		limit int
		want  []span
	}{
		"fits":              {6, spans},
		"one gap of three":  {5, []span{{1, 3}, {5, 9}, {20, 20}, {22, 22}, {40, 50}}},
		"all small gaps":    {3, []span{{1, 9}, {20, 22}, {40, 50}}},
		"down to one":       {1, []span{{1, 50}}},
		"one at the least":  {0, []span{{1, 50}}},
		"a medium gap, too": {2, []span{{1, 22}, {40, 50}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, coarsen(spans, tt.limit), cmp.AllowUnexported(span{})); diff != "" {
				t.Errorf("coarsen to %d (-want +got):\n%s", tt.limit, diff)
			}
		})
	}
}

func BenchmarkFilterProgram(b *testing.B) {
	for name, set := range portSets() {
		b.Run(name, func(b *testing.B) {
			f := filter{tcp: set, udp: set}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bpf.Assemble(f.program(maxPortRanges)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

const patience = 20 * time.Second

// trapTCP and trapUDP are the ports of tcp4 and datagram.
const trapTCP, trapUDP = 11, 7

func onePort(port uint16) detector.PortSet {
	return detector.NewPortSet(detector.PortRange{First: port, Last: port})
}

// An observing is a capture function that runs in the background of a test.
type observing struct {
	probes chan detector.Probe
	cancel context.CancelFunc
	ended  chan error
}

// observeInBackground runs f with an observer that keeps the probes and answers with
// decision. Whoever starts it cancels it and waits for its end.
func observeInBackground(decision detector.Decision, f func(context.Context, Observer) error) *observing {
	w := &observing{probes: make(chan detector.Probe, 1<<16), ended: make(chan error, 1)}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	go func() {
		w.ended <- f(ctx, func(p detector.Probe) detector.Decision {
			w.probes <- p
			return decision
		})
	}()
	return w
}

// wait returns what the capture function returned.
func (w *observing) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-w.ended:
		w.ended <- err // for the next one to ask
		return err
	case <-time.After(patience):
		t.Fatal("capture has not ended")
		return nil
	}
}

// next returns the next probe.
func (w *observing) next(t testing.TB) detector.Probe {
	t.Helper()
	select {
	case p := <-w.probes:
		return p
	case <-time.After(patience):
		t.Fatalf("no probe within %v", patience)
		return detector.Probe{}
	}
}

// A sniffing is a running Sniff on a test host.
type sniffing struct {
	*PacketSocket
	*observing
}

// startSniffing sniffs on host until the test ends.
func startSniffing(t testing.TB, host *nettest.Host, names ...string) *sniffing {
	t.Helper()
	return startSniffingWith(t, host, SniffConfig{Names: names})
}

// startSniffingWith does it in a way of its own, on the usual ports unless it
// names others.
func startSniffingWith(t testing.TB, host *nettest.Host, cfg SniffConfig) *sniffing {
	t.Helper()
	if cfg.TCP.Len()+cfg.UDP.Len() == 0 {
		cfg.TCP, cfg.UDP = onePort(trapTCP), onePort(trapUDP)
	}
	s := new(sniffing)
	host.Do(t, func() {
		var err error
		if s.PacketSocket, err = Open(cfg); err != nil {
			t.Fatal(err)
		}
	})
	s.observing = observeInBackground(detector.Decision{}, func(ctx context.Context, observe Observer) error {
		return Sniff(ctx, s.PacketSocket, observe)
	})
	t.Cleanup(func() {
		s.cancel()
		if err := s.wait(t); err != nil {
			t.Errorf("Sniff: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// An injector sends frames over the scanner's wire to the target.
type injector struct {
	fd     int
	header []byte // Ethernet addresses
}

func newInjector(t testing.TB, scanner, target *nettest.Host) *injector {
	t.Helper()
	i := &injector{header: append(hardwareAddress(t, target), hardwareAddress(t, scanner)...)}
	scanner.Do(t, func() {
		eth, err := net.InterfaceByName(scanner.Interface)
		if err != nil {
			t.Fatal(err)
		}
		if i.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(i.fd, &unix.SockaddrLinklayer{Ifindex: eth.Index}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(i.fd) })
	return i
}

func hardwareAddress(t testing.TB, h *nettest.Host) (address net.HardwareAddr) {
	t.Helper()
	h.Do(t, func() {
		eth, err := net.InterfaceByName(h.Interface)
		if err != nil {
			t.Fatal(err)
		}
		address = eth.HardwareAddr
	})
	return address
}

// send sends packet to the target, as what its first nibble says it is.
func (i *injector) send(t testing.TB, packet []byte) {
	t.Helper()
	i.sendAs(t, uint16(etherTypeOf(packet)), packet)
}

func (i *injector) sendAs(t testing.TB, etherType uint16, packet []byte) {
	t.Helper()
	i.sendFrame(t, append(binary.BigEndian.AppendUint16(bytes.Clone(i.header), etherType), packet...))
}

func (i *injector) sendFrame(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := unix.Write(i.fd, frame); err != nil {
		t.Fatal(err)
	}
}

// lastPacket is a probe that tells that all before it has been seen.
func lastPacket(t testing.TB) ([]byte, detector.Probe) {
	return tcp4(t, detector.FIN), detector.Probe{
		Source: netip.AddrPortFrom(scanner4, 40000), Target: netip.AddrPortFrom(target4, trapTCP),
		Proto: detector.TCP, Technique: detector.TechniqueFIN,
		Header:    detector.HeaderFacts{Flags: detector.FIN, TTL: 64, Window: 1024, IPID: 0x1234, Sequence: 0x01020304},
		IPOptions: detector.False, Interface: "eth0",
	}
}

func diffProbes(want, got detector.Probe) string {
	return cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.IgnoreFields(detector.Probe{}, "At"))
}

func TestSniffFrames(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	s := startSniffing(t, target)

	last, lastProbe := lastPacket(t)
	syn4 := lastProbe
	syn4.Technique, syn4.Header.Flags = detector.TechniqueSYN, detector.SYN
	syn6 := syn4
	syn6.Source, syn6.Target = netip.AddrPortFrom(scanner6, 40000), netip.AddrPortFrom(target6, trapTCP)
	syn6.Header.IPID, syn6.IPOptions = 0, detector.Unset
	elsewhere := func() []byte {
		ip := ip4(layers.IPProtocolTCP)
		ip.DstIP = net.IPv4(198, 51, 100, 9)
		return serialize(t, ip, segment(ip, detector.SYN))
	}()
	toLinkLocal := func() []byte {
		ip := ip6(layers.IPProtocolTCP)
		ip.SrcIP, ip.DstIP = scanner.LinkLocal.AsSlice(), target.LinkLocal.AsSlice()
		return serialize(t, ip, segment(ip, detector.SYN))
	}()
	linkLocal := syn6
	linkLocal.Source = netip.AddrPortFrom(scanner.LinkLocal.WithZone("eth0"), 40000)
	linkLocal.Target = netip.AddrPortFrom(target.LinkLocal.WithZone("eth0"), trapTCP)

	tcp := tcp4(t, detector.SYN)
	to := func(address string, packet []byte) []byte {
		mac, err := net.ParseMAC(address)
		if err != nil {
			t.Fatal(err)
		}
		frame := append(bytes.Clone(mac), wire.header[6:]...)
		return append(binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP), packet...)
	}
	ours := func(etherType uint16, packet []byte) []byte {
		return append(binary.BigEndian.AppendUint16(bytes.Clone(wire.header), etherType), packet...)
	}
	tests := map[string]struct {
		frame []byte
		want  []detector.Probe
		count func(Stats) uint64 // what counts it instead; nil: the kernel drops it
	}{
		"IPv4 SYN":                {frame: ours(unix.ETH_P_IP, tcp), want: []detector.Probe{syn4}},
		"IPv6 SYN":                {frame: ours(unix.ETH_P_IPV6, tcp6(t, detector.SYN)), want: []detector.Probe{syn6}},
		"link-local":              {frame: ours(unix.ETH_P_IPV6, toLinkLocal), want: []detector.Probe{linkLocal}},
		"padded":                  {frame: append(ours(unix.ETH_P_IP, tcp), make([]byte, 6)...), want: []detector.Probe{syn4}},
		"destination options":     {frame: ours(unix.ETH_P_IPV6, behind(t, layers.IPProtocolIPv6Destination, extension(8))), want: []detector.Probe{syn6}},
		"priority tag":            {frame: ours(unix.ETH_P_8021Q, tag(0xe000, layers.EthernetTypeIPv4, tcp)), want: []detector.Probe{syn4}},
		"IPv6 priority tag":       {frame: ours(unix.ETH_P_8021Q, tag(0x6000, layers.EthernetTypeIPv6, tcp6(t, detector.SYN))), want: []detector.Probe{syn6}},
		"two priority tags":       {frame: ours(unix.ETH_P_8021Q, tag(0, layers.EthernetTypeDot1Q, tag(0x4000, layers.EthernetTypeIPv4, tcp))), want: []detector.Probe{syn4}},
		"two priority tags, IPv6": {frame: ours(unix.ETH_P_8021AD, tag(0, layers.EthernetTypeDot1Q, tag(0x6000, layers.EthernetTypeIPv6, tcp6(t, detector.SYN)))), want: []detector.Probe{syn6}},

		"VLAN 5":               {frame: ours(unix.ETH_P_8021Q, tag(5, layers.EthernetTypeIPv4, tcp))},
		"VLAN 5 in VLAN 0":     {frame: ours(unix.ETH_P_8021Q, tag(0, layers.EthernetTypeDot1Q, tag(5, layers.EthernetTypeIPv4, tcp)))},
		"for all":              {frame: to("ff:ff:ff:ff:ff:ff", tcp)},
		"for another host":     {frame: to("02:00:5e:00:53:01", tcp)},
		"SYN-ACK":              {frame: ours(unix.ETH_P_IP, tcp4(t, detector.SYN|detector.ACK))},
		"tiny fragment":        {frame: ours(unix.ETH_P_IP, fragment4(tcp, 8)), count: func(s Stats) uint64 { return s.Undecoded["fragment"] }},
		"third fragment":       {frame: ours(unix.ETH_P_IP, patch(tcp, 6, 0, 2))},
		"wrong checksum":       {frame: ours(unix.ETH_P_IP, patch(tcp, 36, 1, 2)), count: func(s Stats) uint64 { return s.Undecoded["checksum"] }},
		"to be forwarded":      {frame: ours(unix.ETH_P_IP, elsewhere), count: func(s Stats) uint64 { return s.NotLocal }},
		"IPv6, hidden ACK":     {frame: ours(unix.ETH_P_IPV6, hiddenACK(t)), count: func(s Stats) uint64 { return s.NotProbes }},
		"IPv6, other protocol": {frame: ours(unix.ETH_P_IPV6, patch(behind(t, layers.IPProtocolIPv6Destination, extension(8)), 40, 59)), count: func(s Stats) uint64 { return s.Undecoded["other protocol"] }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before := s.Stats()
			wire.sendFrame(t, tt.frame)
			wire.send(t, last)
			for _, want := range append(tt.want, lastProbe) {
				if diff := diffProbes(want, s.next(t)); diff != "" {
					t.Fatalf("probe (-want +got):\n%s", diff)
				}
			}
			passed := uint64(1 + len(tt.want))
			if tt.count != nil {
				passed++
				nettest.WaitFor(t, "the packet is counted", func() bool { return tt.count(s.Stats()) > tt.count(before) })
			}
			if got := s.Stats().Packets - before.Packets; got != passed {
				t.Errorf("%d packets passed the kernel's filter, want %d", got, passed)
			}
		})
	}
}

// hiddenACK is an established connection's segment behind an extension header.
func hiddenACK(t testing.TB) []byte {
	packet := behind(t, layers.IPProtocolIPv6Destination, extension(8))
	segment := tcp6(t, detector.ACK)[40:]
	copy(packet[len(packet)-len(segment):], segment)
	return packet
}

func TestSniffArrivalTime(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	s := startSniffing(t, target)
	before := time.Now()
	wire.send(t, tcp4(t, detector.SYN))
	probe := s.next(t)
	// The kernel's clock may read some nanoseconds earlier than Go's.
	if after := time.Now(); probe.At.Before(before.Add(-time.Millisecond)) || probe.At.After(after) {
		t.Errorf("arrived at %v, want between %v and %v", probe.At, before, after)
	}
}

func TestOrdinaryTrafficStaysInTheKernel(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	s := startSniffing(t, target)
	for _, address := range []netip.Addr{target.IPv4, target.IPv6} {
		talk(t, scanner, target, address, 8080)
	}
	if stats := s.Stats(); stats.Packets != 0 {
		t.Errorf("%d packets reached the process, want none: %+v", stats.Packets, stats)
	}
	talk(t, scanner, target, target.IPv4, trapTCP)
	s.next(t)
	if stats := s.Stats(); stats.Packets != 1 {
		t.Errorf("of a connection to a trap port %d packets reached the process, want the first only: %+v", stats.Packets, stats)
	}
}

// talk sends a megabyte over TCP, and a few datagrams, from scanner to target.
func talk(t *testing.T, scanner, target *nettest.Host, address netip.Addr, port uint16) {
	t.Helper()
	service := target.Listen(t, "tcp", port).(net.Listener)
	datagrams := target.Listen(t, "udp", port)
	defer datagrams.Close()
	defer service.Close()
	received := make(chan int64, 1)
	go func() {
		conn, err := service.Accept()
		if err != nil {
			received <- -1
			return
		}
		defer conn.Close()
		n, _ := io.Copy(io.Discard, conn)
		received <- n
	}()
	to := netip.AddrPortFrom(address, port).String()
	scanner.Do(t, func() {
		udp, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		for range 10 {
			if _, err := udp.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		tcp, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		if _, err := tcp.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	})
	if n := <-received; n != 1<<20 {
		t.Fatalf("%d bytes received", n)
	}
}

func TestSniffLoopback(t *testing.T) {
	_, target := nettest.NewPair(t)
	knock := func(address string) {
		target.Do(t, func() {
			conn, err := net.Dial("tcp", address)
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Fatalf("connected to %s: %v, %v", address, conn, err)
			}
		})
	}
	all, named := startSniffing(t, target), startSniffing(t, target, "lo")
	others := startSniffingWith(t, target, SniffConfig{SkipLoopbacks: true})
	for _, address := range []string{"127.0.0.1:11", "127.0.0.9:11", "[::1]:11", "192.0.2.2:11"} {
		knock(address)
		for _, s := range []*sniffing{all, named} {
			if p := s.next(t); p.Target.String() != address || p.Interface != "lo" {
				t.Errorf("probe of %v on %q, want %s on lo", p.Target, p.Interface, address)
			}
		}
	}
	for name, s := range map[string]*sniffing{"all": all, "lo": named} {
		if got := s.Stats().Packets; got != 4 {
			t.Errorf("on %s: %d packets, want 4", name, got)
		}
	}
	if got := others.Stats().Packets; got != 0 {
		t.Errorf("without loopback: %d packets, want none", got)
	}
}

// TestSniffLoopbackAddressFromTheWire sends what Linux drops as martian.
func TestSniffLoopbackAddressFromTheWire(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	s := startSniffing(t, target)
	ip := ip4(layers.IPProtocolTCP)
	ip.DstIP = net.IPv4(127, 0, 0, 1)
	wire.send(t, serialize(t, ip, segment(ip, detector.SYN)))
	last, lastProbe := lastPacket(t)
	wire.send(t, last)
	if diff := diffProbes(lastProbe, s.next(t)); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}
}

func TestSniffBridge(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	for _, command := range []string{
		"link add br0 type bridge",
		"link set br0 addrgenmode none",
		"link set eth0 master br0", // gives br0 the address of eth0, so that the frame is for both
		"link set br0 up",
		"address flush dev eth0",
		"address add 192.0.2.2/24 dev br0",
	} {
		target.Run(t, "ip", strings.Fields(command)...)
	}
	wire := newInjector(t, scanner, target)
	s := startSniffing(t, target)
	last, lastProbe := lastPacket(t)
	lastProbe.Interface = "br0"
	nettest.WaitFor(t, "the bridge forwards", func() bool {
		return strings.Contains(target.Run(t, "ip", "-details", "link", "show", "eth0"), "state forwarding")
	})
	for range 2 {
		wire.send(t, last)
		if diff := diffProbes(lastProbe, s.next(t)); diff != "" {
			t.Errorf("probe (-want +got):\n%s", diff)
		}
	}
	if got := s.Stats().Packets; got != 2 {
		t.Errorf("%d packets, want 2: each on the bridge only", got)
	}
}

// TestSniffTun has a device without a link header.
func TestSniffTun(t *testing.T) {
	_, target := nettest.NewPair(t)
	tun := openTun(t, target)
	s := startSniffing(t, target, "tun0")
	for _, packet := range [][]byte{tcp4(t, detector.SYN), tcp6(t, detector.SYN)} {
		if _, err := tun.Write(packet); err != nil {
			t.Fatal(err)
		}
		if p := s.next(t); p.Interface != "tun0" || p.Technique != detector.TechniqueSYN {
			t.Errorf("got %+v, want a SYN on tun0", p)
		}
	}
	if got := s.Stats().Packets; got != 2 {
		t.Errorf("%d packets, want 2", got)
	}
}

// openTun returns the wire of a new device tun0 of host.
func openTun(t *testing.T, host *nettest.Host) *os.File {
	t.Helper()
	request, err := unix.NewIfreq("tun0")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	var fd int
	host.Do(t, func() {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			t.Fatal(err)
		}
	})
	tun := os.NewFile(uintptr(fd), "tun0")
	t.Cleanup(func() { tun.Close() })
	host.Run(t, "ip", "link", "set", "tun0", "up")
	return tun
}

func (s *sniffing) view() *hostView { return s.watch.Load().view }

func TestSniffAddressAdded(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	s := startSniffing(t, target)
	added := netip.MustParseAddr("192.0.2.77")
	target.Run(t, "ip", "address", "add", "192.0.2.77/24", "dev", "eth0")
	nettest.WaitFor(t, "the address is known", func() bool { return s.view().isLocal(added, link{}) })
	ip := ip4(layers.IPProtocolTCP)
	ip.DstIP = added.AsSlice()
	packet := serialize(t, ip, segment(ip, detector.SYN))
	wire.send(t, packet)
	if p := s.next(t); p.Target.Addr() != added {
		t.Errorf("target %v, want %v", p.Target, added)
	}
	target.Run(t, "ip", "address", "delete", "192.0.2.77/24", "dev", "eth0")
	nettest.WaitFor(t, "the address is forgotten", func() bool { return !s.view().isLocal(added, link{}) })
	wire.send(t, packet)
	last, lastProbe := lastPacket(t)
	wire.send(t, last)
	if diff := diffProbes(lastProbe, s.next(t)); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}
}

func TestSniffInterfaceComesBack(t *testing.T) {
	for _, interfaces := range [][]string{nil, {"eth0", "lo"}} {
		t.Run(strings.Join(interfaces, ","), func(t *testing.T) {
			scanner, target := nettest.NewPair(t)
			s := startSniffing(t, target, interfaces...)
			last, lastProbe := lastPacket(t)
			newInjector(t, scanner, target).send(t, last)
			if diff := diffProbes(lastProbe, s.next(t)); diff != "" {
				t.Errorf("first probe (-want +got):\n%s", diff)
			}

			target.Run(t, "ip", "link", "delete", "eth0")
			nettest.WaitFor(t, "the interface is gone", func() bool { return len(s.view().links) == 1 })

			// The new one has another index.
			target.Run(t, "ip", "link", "add", "eth0", "index", "77", "type", "veth", "peer", "name", "eth0", "netns", scanner.Name)
			target.Run(t, "ip", "address", "add", "192.0.2.2/24", "dev", "eth0")
			target.Run(t, "ip", "link", "set", "eth0", "up")
			scanner.Run(t, "ip", "link", "set", "eth0", "up")
			nettest.WaitFor(t, "the interface is back", func() bool {
				return s.view().links[77].up && s.view().isLocal(target4, link{})
			})
			newInjector(t, scanner, target).send(t, last)
			if diff := diffProbes(lastProbe, s.next(t)); diff != "" {
				t.Errorf("second probe (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSetPorts(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	s := startSniffing(t, target)
	last, lastProbe := lastPacket(t)
	udp := func() []byte { ip := ip4(layers.IPProtocolUDP); return serialize(t, ip, datagram(ip)) }()
	set := func(tcp, udp detector.PortSet) {
		if err := s.SetPorts(tcp, udp); err != nil {
			t.Fatal(err)
		}
	}

	set(detector.PortSet{}, onePort(trapUDP))
	wire.send(t, last)
	wire.send(t, udp)
	if p := s.next(t); p.Proto != detector.UDP {
		t.Errorf("got %+v, want the datagram alone", p)
	}
	for name, ports := range portSets() { // the kernel takes them all
		set(ports, ports)
		if len(s.attached) == 0 {
			t.Errorf("%s: no filter", name)
		}
	}
	set(onePort(trapTCP), detector.PortSet{})
	wire.send(t, udp)
	wire.send(t, last)
	if diff := diffProbes(lastProbe, s.next(t)); diff != "" {
		t.Errorf("probe (-want +got):\n%s", diff)
	}
}

// flood sends SYNs as fast as it can until the returned function is called.
func flood(t *testing.T, wire *injector) (stop func()) {
	t.Helper()
	frame := append(binary.BigEndian.AppendUint16(bytes.Clone(wire.header), unix.ETH_P_IP), tcp4(t, detector.SYN)...)
	var done atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !done.Load() {
			_, _ = unix.Write(wire.fd, frame)
		}
	}()
	return func() {
		done.Store(true)
		<-ended
	}
}

func TestSniffStops(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	end := func(t *testing.T, s *sniffing, soon time.Duration) {
		t.Helper()
		began := time.Now()
		s.cancel()
		if err := s.wait(t); err != nil {
			t.Errorf("Sniff: %v", err)
		}
		if took := time.Since(began); took > soon {
			t.Errorf("Sniff ended after %v, want at most %v", took, soon)
		}
	}
	t.Run("idle", func(t *testing.T) {
		s := startSniffing(t, target)
		wire.send(t, tcp4(t, detector.SYN))
		s.next(t)
		end(t, s, time.Second)
	})
	t.Run("flooded", func(t *testing.T) {
		s := startSniffing(t, target)
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			for range s.probes {
			}
		}()
		stop := flood(t, wire)
		nettest.WaitFor(t, "the flood arrives", func() bool { return s.Stats().Probes > 10_000 })
		end(t, s, 5*time.Second) // the flood takes the machine, not only from us
		if stats := s.Stats(); stats.Packets != stats.Probes+stats.Lost {
			t.Errorf("%+v, want every packet observed or lost", stats)
		}
		stop()
		close(s.probes)
		<-drained
	})
	t.Run("closed", func(t *testing.T) {
		s := startSniffing(t, target)
		wire.send(t, tcp4(t, detector.SYN))
		s.next(t)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.wait(t); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("Sniff: %v, want an error about the closed socket", err)
		}
		s.ended = make(chan error, 1)
		s.ended <- nil // seen
		if err := Sniff(t.Context(), s.PacketSocket, nil); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Sniff on a closed socket: %v, want %v", err, os.ErrClosed)
		}
		if got := s.Stats(); got.Packets != 1 || got.Probes != 1 {
			t.Errorf("after the end %+v, want one packet, one probe", got)
		}
	})
}

// TestSniffEndsWithWhatHasArrived stops right after a packet, which is still in
// the block that the kernel has open.
func TestSniffEndsWithWhatHasArrived(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	last, lastProbe := lastPacket(t)
	for round := range 10 {
		s := startSniffing(t, target)
		wire.send(t, last)
		for s.Stats().Packets == 0 { // it arrives at once, unless the machine is busy
			runtime.Gosched()
		}
		s.cancel()
		if err := s.wait(t); err != nil {
			t.Fatal(err)
		}
		if stats := s.Stats(); stats.Probes != 1 || stats.Lost != 0 {
			t.Fatalf("round %d: %+v, want one probe and none lost", round, stats)
		}
		if diff := diffProbes(lastProbe, s.next(t)); diff != "" {
			t.Fatalf("probe (-want +got):\n%s", diff)
		}
	}
}

// TestCloseWhileTheHostChanges closes sockets while they read interfaces and
// addresses; the race detector judges.
func TestCloseWhileTheHostChanges(t *testing.T) {
	_, target := nettest.NewPair(t)
	for range 5 {
		s := startSniffing(t, target)
		resynced := make(chan error)
		go func() {
			for {
				if err := s.resync(); err != nil {
					resynced <- err
					return
				}
			}
		}()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-resynced; !errors.Is(err, os.ErrClosed) {
			t.Errorf("resync after Close: %v, want %v", err, os.ErrClosed)
		}
		if err := s.wait(t); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Sniff: %v, want %v", err, os.ErrClosed)
		}
		s.ended = make(chan error, 1)
		s.ended <- nil // seen
	}
}

// TestLostPacketsAreCounted fills a ring that nobody reads.
func TestLostPacketsAreCounted(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	wire := newInjector(t, scanner, target)
	var s *PacketSocket
	target.Do(t, func() {
		var err error
		if s, err = Open(SniffConfig{TCP: onePort(trapTCP), ringSize: 1}); err != nil {
			t.Fatal(err)
		}
	})
	defer s.Close()
	const atOnce, enough = 100, 2 * blockSize / 64 // more than the kernel's backlog holds would not all arrive
	var stats Stats
	for sent := uint64(atOnce); stats.Lost == 0 && sent < enough; sent += atOnce {
		for range atOnce {
			wire.send(t, tcp4(t, detector.SYN))
		}
		nettest.WaitFor(t, "the packets arrive", func() bool {
			stats = s.Stats()
			return stats.Packets == sent
		})
	}
	if stats.Lost == 0 || stats.Lost >= stats.Packets {
		t.Errorf("%+v, want some of the packets lost", stats)
	}
	if again := s.Stats(); !maps.Equal(stats.Undecoded, again.Undecoded) || again.Packets != stats.Packets || again.Lost != stats.Lost {
		t.Errorf("then %+v, want the same as before: %+v", again, stats)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if closed := s.Stats(); closed.Packets != stats.Packets || closed.Lost != stats.Packets {
		t.Errorf("after the end %+v, want all of %d packets lost", closed, stats.Packets)
	}
}

func TestOpenErrors(t *testing.T) {
	_, target := nettest.NewPair(t)
	target.Run(t, "ip", "link", "set", "eth0", "down")
	tests := map[string]struct {
		cfg  SniffConfig
		want string
	}{
		"no such interface": {SniffConfig{Names: []string{"eth9"}}, `no usable interface: asked for "eth9"; this host has lo (up), eth0 (down)`},
		"down":              {SniffConfig{SkipLoopbacks: true}, `no usable interface: asked for all but loopback; this host has lo (up), eth0 (down)`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			target.Do(t, func() {
				s, err := Open(tt.cfg)
				if err == nil {
					s.Close()
				}
				if err == nil || normalLinks(err.Error()) != tt.want {
					t.Errorf("got %v, want %s", err, tt.want)
				}
			})
		})
	}
}

// normalLinks leaves out the tunnel devices that some kernels put into every
// network namespace.
func normalLinks(text string) string {
	for _, name := range []string{"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"} {
		text = strings.ReplaceAll(text, ", "+name+" (down)", "")
	}
	return text
}

func TestOpenWithoutPrivilege(t *testing.T) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
			return
		}
		s, err := Open(SniffConfig{Names: []string{"lo"}})
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "run as root or with CAP_NET_RAW") {
			t.Errorf("got %v, want EPERM and what to do", err)
		}
	}()
	<-ended
}

// BenchmarkSniff measures a packet's way from the wire to the observer: how
// long it takes alone, which the hand-over time governs.
func BenchmarkSniff(b *testing.B) {
	scanner, target := nettest.NewPair(b)
	wire := newInjector(b, scanner, target)
	for _, handOver := range []time.Duration{time.Millisecond, 8 * time.Millisecond} {
		b.Run(handOver.String(), func(b *testing.B) {
			var s *PacketSocket
			target.Do(b, func() {
				var err error
				if s, err = Open(SniffConfig{TCP: onePort(trapTCP), handOver: handOver}); err != nil {
					b.Fatal(err)
				}
			})
			defer s.Close()
			ctx, cancel := context.WithCancel(context.Background())
			probes := make(chan struct{})
			ended := make(chan error, 1)
			go func() {
				ended <- Sniff(ctx, s, func(detector.Probe) detector.Decision {
					probes <- struct{}{}
					return detector.Decision{}
				})
			}()
			syn := tcp4(b, detector.SYN)
			for b.Loop() {
				wire.send(b, syn)
				<-probes
			}
			cancel()
			if err := <-ended; err != nil {
				b.Error(err)
			}
		})
	}
}

package capture

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
)

// openServices returns the services of host.
func openServices(t testing.TB, host *nettest.Host, log *logrus.Entry) *Services {
	t.Helper()
	var s *Services
	host.Do(t, func() {
		var err error
		if s, err = NewServices(log); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { s.Close() })
	return s
}

// expire makes the next question read the tables again.
func (s *Services) expire() { s.stale.Store(true) }

func TestServices(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	target.Run(t, "ip", "address", "add", "192.0.2.3/24", "dev", "eth0")
	scanner.Listen(t, "tcp", 443)
	const tcp, udp = detector.TCP, detector.UDP
	ipv4, ipv6, local := target.IPv4, target.IPv6, target.LinkLocal.WithZone("eth0")
	other, loopback := netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("127.0.0.1")
	all := []netip.Addr{ipv4, other, ipv6, local, loopback}
	all4, all6 := []netip.Addr{ipv4, other, loopback}, []netip.Addr{ipv6, local}

	tests := map[string]struct {
		open  func(t *testing.T) // on the target
		proto detector.Proto
		held  []netip.Addr // of all
	}{
		"nothing":                   {func(*testing.T) {}, tcp, nil},
		"dual-stack":                {listen("tcp", "[::]:80"), tcp, all},
		"IPv4 only":                 {listen("tcp4", "0.0.0.0:80"), tcp, all4},
		"IPv6 only":                 {listen("tcp6", "[::]:80"), tcp, all6},
		"one IPv4 address":          {listen("tcp", "192.0.2.2:80"), tcp, []netip.Addr{ipv4}},
		"one IPv6 address":          {listen("tcp", "[2001:db8::2]:80"), tcp, []netip.Addr{ipv6}},
		"link-local":                {listen("tcp", "[fe80::2%eth0]:80"), tcp, []netip.Addr{local}},
		"loopback":                  {listen("tcp", "127.0.0.1:80"), tcp, []netip.Addr{loopback}},
		"IPv4-mapped":               {listenMapped(ipv4), tcp, []netip.Addr{ipv4}},
		"on a device":               {listenOn("lo", "tcp [::]:80"), tcp, all},
		"TCP is not UDP":            {listen("tcp", "[::]:80"), udp, nil},
		"UDP is not TCP":            {listen("udp", "[::]:80"), tcp, nil},
		"UDP dual-stack":            {listen("udp", "[::]:80"), udp, all},
		"UDP IPv4 only":             {listen("udp4", "0.0.0.0:80"), udp, all4},
		"UDP IPv6 only":             {listen("udp6", "[::]:80"), udp, all6},
		"UDP, one address":          {listen("udp", "192.0.2.3:80"), udp, []netip.Addr{other}},
		"UDP, connected":            {connect("udp", "192.0.2.1:53"), udp, []netip.Addr{ipv4}},
		"TCP, connected":            {connect("tcp", "192.0.2.1:443"), tcp, nil},
		"TCP, bound, not listening": {bind, tcp, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := openServices(t, target, nil)
			target.Do(t, func() { tt.open(t) })
			s.expire()
			held := make(map[netip.Addr]bool)
			for _, addr := range tt.held {
				held[addr] = true
			}
			for _, addr := range all {
				if got := s.InUse(tt.proto, netip.AddrPortFrom(addr, 80)); got != held[addr] {
					t.Errorf("%v at %v in use: %v, want %v", tt.proto, addr, got, held[addr])
				}
				if s.InUse(tt.proto, netip.AddrPortFrom(addr, 81)) {
					t.Errorf("%v at %v: the next port is in use, too", tt.proto, addr)
				}
			}
			if n := s.Failures(); n != 0 {
				t.Errorf("%d failures", n)
			}
		})
	}
}

// listen opens a service until the test ends.
func listen(network, address string) func(*testing.T) { return listenOn("", network+" "+address) }

// listenOn opens a service, if a device is named then bound to it.
func listenOn(device, networkAndAddress string) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		network, address, _ := strings.Cut(networkAndAddress, " ")
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			if device == "" {
				return nil
			}
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }), err)
		}}
		var service io.Closer
		var err error
		if strings.HasPrefix(network, "udp") {
			service, err = config.ListenPacket(t.Context(), network, address)
		} else {
			service, err = config.Listen(t.Context(), network, address)
		}
		closeAtEnd(t, service, err)
	}
}

func closeAtEnd(t *testing.T, c io.Closer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// listenMapped opens an IPv6 socket on an IPv4 address, as some servers do.
func listenMapped(addr netip.Addr) func(*testing.T) {
	return func(t *testing.T) {
		fd := boundSocket(t, unix.AF_INET6, &unix.SockaddrInet6{Port: 80, Addr: addr.As16()})
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// bind takes the port without offering a service.
func bind(t *testing.T) {
	boundSocket(t, unix.AF_INET, &unix.SockaddrInet4{Port: 80})
}

func boundSocket(t *testing.T, family int, address unix.Sockaddr) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	closeAtEnd(t, os.NewFile(uintptr(fd), "socket"), err)
	if err := unix.Bind(fd, address); err != nil {
		t.Fatal(err)
	}
	return fd
}

// connect opens a connection from port 80.
func connect(network, address string) func(*testing.T) {
	return func(t *testing.T) {
		dialer := net.Dialer{LocalAddr: &net.UDPAddr{Port: 80}}
		if network == "tcp" {
			dialer.LocalAddr = &net.TCPAddr{Port: 80}
		}
		conn, err := dialer.DialContext(t.Context(), network, address)
		closeAtEnd(t, conn, err)
		if tcp, ok := conn.(*net.TCPConn); ok { // leave no TIME-WAIT on the port
			if err := tcp.SetLinger(0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestServicesKeepASnapshot shows that a snapshot serves until it expires.
func TestServicesKeepASnapshot(t *testing.T) {
	_, target := nettest.NewPair(t)
	s := openServices(t, target, nil)
	s.serve(&serviceTable{age: time.Hour})
	target.Listen(t, "tcp", 80)
	http := netip.AddrPortFrom(target.IPv4, 80)
	if s.InUse(detector.TCP, http) {
		t.Error("a service is known that opened after the snapshot")
	}
	s.expire()
	if !s.InUse(detector.TCP, http) {
		t.Error("a service is unknown after the snapshot expired")
	}
	if age := s.table.Load().age; age <= 0 || age > maxServiceAge {
		t.Errorf("the new snapshot serves for %v, want at most %v", age, maxServiceAge)
	}
	nettest.WaitFor(t, "the new snapshot expires", s.stale.Load)
}

// A service for one request has closed before its packet is looked at.
func TestServicesRememberWhoHasJustGone(t *testing.T) {
	_, target := nettest.NewPair(t)
	for network, proto := range map[string]detector.Proto{"tcp": detector.TCP, "udp": detector.UDP} {
		t.Run(network, func(t *testing.T) {
			service := target.Listen(t, network, 29)
			s := openServices(t, target, nil)
			port := netip.AddrPortFrom(target.IPv4, 29)
			s.memory = time.Hour
			service.Close()
			s.expire()
			if !s.InUse(proto, port) {
				t.Error("a service that has just gone is forgotten")
			}
			s.expire()
			if !s.InUse(proto, port) {
				t.Error("a service that has just gone is forgotten at the second look")
			}
			table := s.table.Load()
			for key, d := range table.gone {
				table.gone[key] = departed{d.holders, time.Now()}
			}
			s.expire()
			if s.InUse(proto, port) {
				t.Error("a service that has gone is remembered for ever")
			}
		})
	}
}

func TestHoldersCover(t *testing.T) {
	one, both := map[netip.Addr]struct{}{target4: {}}, map[netip.Addr]struct{}{target4: {}, target6: {}}
	tests := map[string]struct {
		now, before *holders
		want        bool
	}{
		"nobody left":        {nil, &holders{all4: true}, false},
		"the same":           {&holders{all4: true, addrs: one}, &holders{all4: true, addrs: one}, true},
		"an address less":    {&holders{addrs: one}, &holders{addrs: both}, false},
		"all for an address": {&holders{all4: true}, &holders{addrs: one}, true},
		"IPv4 gone":          {&holders{all6: true}, &holders{all4: true, all6: true}, false},
		"IPv6 gone":          {&holders{all4: true}, &holders{all4: true, all6: true}, false},
	}
	for name, tt := range tests {
		if got := tt.now.cover(tt.before); got != tt.want {
			t.Errorf("%s: cover = %v, want %v", name, got, tt.want)
		}
	}
}

func TestServicesRunLooksUntilToldToStop(t *testing.T) {
	_, target := nettest.NewPair(t)
	s := openServices(t, target, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	target.Listen(t, "tcp", 29)
	nettest.WaitFor(t, "a look that nobody asked for", func() bool {
		return s.table.Load().holds(detector.TCP, netip.AddrPortFrom(target.IPv4, 29))
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

func TestServiceAge(t *testing.T) {
	tests := map[string]struct{ cost, want time.Duration }{
		"next to nothing":      {10 * time.Microsecond, minServiceAge},
		"a hundredth":          {100 * time.Microsecond, 10 * time.Millisecond},
		"at most 100 ms":       {5 * time.Millisecond, maxServiceAge},
		"unless it costs much": {50 * time.Millisecond, 500 * time.Millisecond},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := serviceAge(tt.cost); got != tt.want {
				t.Errorf("a snapshot that took %v serves for %v, want %v", tt.cost, got, tt.want)
			}
		})
	}
}

// TestServicesOutliveFailure asks through a netlink family that does not exist.
func TestServicesOutliveFailure(t *testing.T) {
	_, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 80)
	logger, logged := logtest.NewNullLogger()
	s := openServices(t, target, logrus.NewEntry(logger))
	working := s.sockets // closed with s in the end
	http := netip.AddrPortFrom(target.IPv4, 80)
	for i := range uint64(3) {
		s.sockets = &dumper{family: -1}
		s.expire()
		if !s.InUse(detector.TCP, http) {
			t.Error("a failure made the service unknown")
		}
		if got := s.Failures(); got != i+1 {
			t.Errorf("%d failures, want %d", got, i+1)
		}
	}
	if got := len(logged.AllEntries()); got != 1 {
		t.Errorf("%d log entries, want one", got)
	}
	if age := s.table.Load().age; age != maxServiceAge {
		t.Errorf("the next question fails again after %v, want %v", age, maxServiceAge)
	}
	s.sockets = working
	s.expire()
	if !s.InUse(detector.TCP, http) || s.Failures() != 3 {
		t.Errorf("in use: %v after %d failures, want recovery", s.InUse(detector.TCP, http), s.Failures())
	}
}

func TestServicesClosed(t *testing.T) {
	_, target := nettest.NewPair(t)
	target.Listen(t, "tcp", 80)
	s := openServices(t, target, nil)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s.expire()
	if !s.InUse(detector.TCP, netip.AddrPortFrom(target.IPv4, 80)) || s.Failures() != 0 {
		t.Errorf("after Close the last snapshot is not in force (%d failures)", s.Failures())
	}
}

// FuzzServiceAnswer hands in what no kernel answers.
func FuzzServiceAnswer(f *testing.F) {
	answer := make([]byte, diagAnswerSize)
	answer[0], answer[diagAnswerPortAt+1] = unix.AF_INET6, 80
	only, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: diagV6Only, Data: []byte{1}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(answer)
	f.Add(slices.Concat(answer, only))
	f.Fuzz(func(t *testing.T, answer []byte) {
		table := &serviceTable{ports: make(map[uint32]*holders)}
		if err := table.add(detector.TCP, answer); err != nil {
			return
		}
		if len(table.ports) > 1 {
			t.Errorf("% x is %d services", answer, len(table.ports))
		}
	})
}

func TestInUseAllocatesNothing(t *testing.T) {
	s, targets := sampleServices()
	if got := testing.AllocsPerRun(100, func() {
		for _, target := range targets {
			s.InUse(detector.TCP, target)
		}
	}); got != 0 {
		t.Errorf("%v allocations for %d questions, want none", got, len(targets))
	}
}

// sampleServices returns a snapshot of a usual server that serves for long.
func sampleServices() (*Services, map[string]netip.AddrPort) {
	table := &serviceTable{ports: make(map[uint32]*holders)}
	for port := range uint16(50) {
		table.ports[portKey(detector.TCP, port)] = &holders{all4: true, all6: true}
	}
	table.ports[portKey(detector.TCP, 80)] = &holders{addrs: map[netip.Addr]struct{}{target4: {}, target6: {}}}
	s := new(Services)
	s.table.Store(table)
	return s, map[string]netip.AddrPort{
		"free":       netip.AddrPortFrom(target4, 12345),
		"wildcard":   netip.AddrPortFrom(target6, 22),
		"bound":      netip.AddrPortFrom(target6, 80),
		"link-local": netip.MustParseAddrPort("[fe80::2%eth0]:80"),
	}
}

func BenchmarkInUse(b *testing.B) {
	s, targets := sampleServices()
	for name, target := range targets {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.InUse(detector.TCP, target)
			}
		})
	}
}

// BenchmarkReadServices reads the tables of a host with a hundred services.
func BenchmarkReadServices(b *testing.B) {
	_, target := nettest.NewPair(b)
	for port := range uint16(50) {
		target.Listen(b, "tcp", 1000+port)
		target.Listen(b, "udp", 1000+port)
	}
	s := openServices(b, target, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readServices(s.sockets); err != nil {
			b.Fatal(err)
		}
	}
}

package capture

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/gopacket/layers"

	"github.com/portsnare/portsnare/detector"
)

// newBlock lays packets into a block as the kernel does, from interface 3.
func newBlock(packets ...[]byte) []byte {
	block := make([]byte, blockSize)
	order := binary.NativeEndian
	order.PutUint32(block[8:], unix.TP_STATUS_USER)
	order.PutUint32(block[12:], uint32(len(packets)))
	order.PutUint32(block[16:], 48)
	at := 48
	for i, packet := range packets {
		const network = 96 // the kernel leaves room for a link header
		h := block[at:]
		step := (network + len(packet) + 7) &^ 7
		if i < len(packets)-1 {
			order.PutUint32(h, uint32(step))
		}
		order.PutUint32(h[4:], uint32(arrival.Unix()))
		order.PutUint32(h[8:], uint32(arrival.Nanosecond()))
		order.PutUint32(h[12:], uint32(len(packet)))
		order.PutUint32(h[16:], uint32(len(packet)))
		order.PutUint32(h[20:], unix.TP_STATUS_USER)
		order.PutUint16(h[24:], network)
		order.PutUint16(h[26:], network)
		address := h[48:]
		order.PutUint16(address, unix.AF_PACKET)
		binary.BigEndian.PutUint16(address[2:], uint16(etherTypeOf(packet)))
		order.PutUint32(address[4:], 3)
		copy(h[network:], packet)
		at += step
	}
	return block
}

func TestReadBlock(t *testing.T) {
	packets := [][]byte{tcp4(t, detector.SYN), tcp6(t, detector.FIN), {}, tcp4(t, 0)}
	frames := readBlock(newBlock(packets...))
	var f frame
	for i, want := range packets {
		if !frames.next(&f) {
			t.Fatalf("frame %d of %d is missing", i, len(packets))
		}
		if !bytes.Equal(f.data, want) || f.length != len(want) || f.index != 3 || !f.at.Equal(arrival) ||
			f.etherType != uint16(etherTypeOf(want)) || f.checksum() != checksumVerify {
			t.Errorf("frame %d is %+v, want % x from interface 3 at %v", i, f, want, arrival)
		}
	}
	if frames.next(&f) || frames.broken {
		t.Errorf("then another frame (broken: %v), want the end", frames.broken)
	}
}

func TestReadBrokenBlock(t *testing.T) {
	put := func(at int, value uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.NativeEndian.PutUint32(b[at:], value); return b }
	}
	const first = 48
	tests := map[string]func([]byte) []byte{
		"too small":               func(b []byte) []byte { return b[:47] },
		"first frame at the head": put(16, 8),
		"first frame at the end":  put(16, blockSize-60),
		"first frame far outside": put(16, 1<<31),
		"more frames than there":  put(12, 3),
		"next frame outside":      put(first, blockSize),
		"next frame far outside":  put(first, 1<<32-1),
		"packet in the header":    put(first+24, 20|20<<16),
		"packet starts outside":   func(b []byte) []byte { return b[:first+90] },
		"packet ends outside":     put(first+12, blockSize-first-95),
		"packet without end":      put(first+12, 1<<32-1),
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			frames := readBlock(damage(newBlock(tcp4(t, detector.SYN), tcp4(t, detector.FIN))))
			var f frame
			for frames.next(&f) {
			}
			if !frames.broken {
				t.Error("read to the end, want it broken")
			}
		})
	}
}

func TestFrameStartsWith(t *testing.T) {
	syn4, syn6 := tcp4(t, detector.SYN), tcp6(t, detector.SYN)
	const tagged, untagged = unix.TP_STATUS_VLAN_VALID, 0
	tests := map[string]struct {
		status uint32
		typed  uint16
		data   []byte
		want   uint16
	}{
		"IPv4":                         {untagged, unix.ETH_P_IP, syn4, unix.ETH_P_IP},
		"IPv4 behind one tag":          {tagged, unix.ETH_P_IP, syn4, unix.ETH_P_IP},
		"IPv6 behind one tag":          {tagged, unix.ETH_P_IPV6, syn6, unix.ETH_P_IPV6},
		"IPv4 behind two":              {tagged, unix.ETH_P_IP, tag(0x4000, layers.EthernetTypeIPv4, syn4), unix.ETH_P_8021Q},
		"IPv6 behind two":              {tagged, unix.ETH_P_IPV6, tag(0x6000, layers.EthernetTypeIPv6, syn6), unix.ETH_P_8021Q},
		"two tags, announced as such":  {tagged, unix.ETH_P_8021Q, tag(0, layers.EthernetTypeIPv4, syn4), unix.ETH_P_8021Q},
		"flow label like an EtherType": {tagged, unix.ETH_P_IPV6, patch(syn6, 0, 0x60, 0, 0x86, 0xdd), unix.ETH_P_IPV6},
		"IPv4 behind three":            {tagged, unix.ETH_P_IP, tags(2, layers.EthernetTypeIPv4, syn4), unix.ETH_P_8021Q},
		"IPv6 behind twenty":           {tagged, 0, tags(19, layers.EthernetTypeIPv6, syn6), unix.ETH_P_8021Q},
		"VLAN 5 behind others":         {tagged, unix.ETH_P_IP, tag(0, layers.EthernetTypeDot1Q, tag(5, layers.EthernetTypeIPv4, syn4)), unix.ETH_P_IP},
		"half a tag":                   {tagged, unix.ETH_P_IP, tags(2, layers.EthernetTypeIPv4, nil)[:6], unix.ETH_P_IP},
		"like a tag, untagged":         {untagged, unix.ETH_P_IP, tag(0, layers.EthernetTypeIPv4, syn4), unix.ETH_P_IP},
		"nothing":                      {tagged, unix.ETH_P_IP, nil, unix.ETH_P_IP},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := frame{status: tt.status, etherType: tt.typed, data: tt.data}
			if got := f.startsWith(); got != tt.want {
				t.Errorf("starts with %#04x, want %#04x", got, tt.want)
			}
		})
	}
}

func TestFrameChecksum(t *testing.T) {
	tests := map[string]struct {
		status uint32
		want   checksumState
	}{
		"to be verified":         {unix.TP_STATUS_USER, checksumVerify},
		"to be filled in":        {unix.TP_STATUS_USER | unix.TP_STATUS_CSUMNOTREADY, checksumTrusted},
		"verified by the device": {unix.TP_STATUS_USER | unix.TP_STATUS_CSUM_VALID, checksumTrusted},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := (&frame{status: tt.status}).checksum(); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// FuzzReadBlock hands in blocks that no kernel makes.
func FuzzReadBlock(f *testing.F) {
	f.Add(newBlock(tcp4(f, detector.SYN), tcp6(f, detector.SYN))[:1024])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, block []byte) {
		r, w := testSniffer(new(uint64))
		r.block(block, w)
		frames := readBlock(block)
		var fr frame
		for n := 0; frames.next(&fr); n++ {
			if n > len(block) {
				t.Fatal("more frames than bytes")
			}
		}
	})
}

// testSniffer returns a sniffer that counts probes, and what it watches.
func testSniffer(probes *uint64) (*sniffer, *watch) {
	r := &sniffer{decoder: newDecoder(), observe: func(detector.Probe) detector.Decision {
		*probes++
		return detector.Decision{}
	}}
	view := newHostView()
	view.links[3] = link{name: "eth0", up: true}
	view.addresses[target4] = struct{}{}
	view.addresses[target6] = struct{}{}
	return r, &watch{view: view, tcp: onePort(trapTCP), udp: onePort(trapUDP)}
}

// fullBlock returns a block of one packet many times over, and how many.
func fullBlock(packet []byte) ([]byte, int) {
	const n = 480
	return newBlock(slices.Repeat([][]byte{packet}, n)...), n
}

func udp4(tb testing.TB) []byte {
	ip := ip4(layers.IPProtocolUDP)
	return serialize(tb, ip, datagram(ip))
}

func TestBlockAllocatesNothing(t *testing.T) {
	for name, packet := range map[string][]byte{"SYN": tcp4(t, detector.SYN), "UDP": udp4(t)} {
		t.Run(name, func(t *testing.T) {
			block, n := fullBlock(packet)
			var probes uint64
			r, w := testSniffer(&probes)
			if got := testing.AllocsPerRun(10, func() { r.block(block, w) }); got != 0 {
				t.Errorf("%v allocations for %d packets, want none", got, n)
			}
			if probes == 0 || probes%uint64(n) != 0 {
				t.Errorf("%d probes, want a multiple of %d", probes, n)
			}
		})
	}
}

func BenchmarkBlock(b *testing.B) {
	for name, packet := range map[string][]byte{"SYN": tcp4(b, detector.SYN), "UDP": udp4(b)} {
		b.Run(name, func(b *testing.B) {
			block, n := fullBlock(packet)
			var probes uint64
			r, w := testSniffer(&probes)
			for i := range requestsPerSet { // the longest search
				r.requests.sent(udpProbe("192.0.2.2:7", netip.AddrPortFrom(scanner4, uint16(i+1)).String(), arrival), false)
			}
			b.ReportAllocs()
			began := time.Now()
			for b.Loop() {
				r.block(block, w)
			}
			b.ReportMetric(float64(time.Since(began).Nanoseconds())/float64(b.N*n), "ns/packet")
		})
	}
}

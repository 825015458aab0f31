package main

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// sampleSources are the edges of the range and some numbers in between.
var sampleSources = []uint32{0, 1, 2, 63, 64, 59_999, 60_000, 65_535, 65_536, 2_499_999, maxSources - 1, sourceMask}

func TestFrameWriter(t *testing.T) {
	w := newFrameWriter()
	frame := newFrame()
	for _, i := range sampleSources {
		w.set(frame, i)
		packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		if failure := packet.ErrorLayer(); failure != nil {
			t.Fatalf("source %d: %v", i, failure.Error())
		}
		ip, _ := packet.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		tcp, _ := packet.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if ip == nil || tcp == nil {
			t.Fatalf("source %d: not TCP over IPv4: %v", i, packet)
		}
		if len(tcp.Payload) != 0 || !tcp.SYN || tcp.ACK || tcp.DstPort != trapPort {
			t.Errorf("source %d: not a SYN to port %d: %v", i, trapPort, packet)
		}
		if !ip.DstIP.Equal(targetAddr[:]) {
			t.Errorf("source %d: sent to %v, want %v", i, ip.DstIP, targetAddr)
		}
		addr, _ := netip.AddrFromSlice(ip.SrcIP)
		if got, ok := sourceIndex(addr); got != i || !ok {
			t.Errorf("source %d: sent from %v, which is source %d, %t", i, addr, got, ok)
		}
		if again := serialize(t, ip, tcp); string(again) != string(frame[ethernetLen:]) {
			t.Errorf("source %d: sent %x, gopacket makes it %x", i, frame[ethernetLen:], again)
		}
	}
}

// serialize returns the packet as gopacket writes it, lengths and checksums
// worked out anew.
func serialize(t *testing.T, ip *layers.IPv4, tcp *layers.TCP) []byte {
	t.Helper()
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buffer := gopacket.NewSerializeBuffer()
	fix := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, fix, ip, tcp); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func TestSourcesAreDistinct(t *testing.T) {
	seen := make([]bool, sourceMask+1)
	for i := range uint32(maxSources) {
		a := sourceAddr(i)
		if a&^sourceMask != sourceBase || seen[a&sourceMask] {
			t.Fatalf("source %d: address %#x is out of range or taken", i, a)
		}
		seen[a&sourceMask] = true
	}
}

func TestSourceIndexOfStrangers(t *testing.T) {
	for _, s := range []string{"198.51.100.1", "239.255.255.255", "248.0.0.0", "2001:db8::1", "::ffff:240.0.0.1"} {
		if i, ok := sourceIndex(netip.MustParseAddr(s)); ok {
			t.Errorf("sourceIndex(%s) = %d, want none", s, i)
		}
	}
}

func BenchmarkFrameWriter(b *testing.B) {
	w := newFrameWriter()
	frame := newFrame()
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		w.set(frame, i)
		i++
	}
}

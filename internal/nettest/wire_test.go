package nettest_test

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/portsnare/portsnare/internal/nettest"
)

func TestWireSendsFramesAsTheyAre(t *testing.T) {
	scanner, target := nettest.NewPair(t)
	service := target.Listen(t, "udp", 53).(net.PacketConn)
	forged := net.IPv4(198, 51, 100, 7)
	target.Run(t, "ip", "route", "add", "198.51.100.0/24", "dev", target.Interface) // or Linux drops it

	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: forged, DstIP: target.IPv4.AsSlice()}
	udp := &layers.UDP{SrcPort: 40000, DstPort: 53}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	frame := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(frame, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{DstMAC: target.HardwareAddr(t), SrcMAC: scanner.HardwareAddr(t), EthernetType: layers.EthernetTypeIPv4},
		ip, udp, gopacket.Payload("who is there"),
	); err != nil {
		t.Fatal(err)
	}
	wire := scanner.Wire(t)
	wrong := slices.Clone(frame.Bytes())
	wrong[len(wrong)-1]++ // nobody mends the checksum
	wire.Send(t, wrong)
	wire.Send(t, frame.Bytes())

	if err := service.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, from, err := service.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "who is there" || !from.(*net.UDPAddr).IP.Equal(forged) {
		t.Errorf("read %q from %v, %v; want the second frame's text from %v", buf[:n], from, err, forged)
	}
}

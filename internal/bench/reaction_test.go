package main

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func TestReactionCountsFailures(t *testing.T) {
	var took []time.Duration
	for i := range 198 {
		took = append(took, time.Duration(198-i))
	}
	got, err := newReaction(took, 200, 10_000)
	if want := (reaction{Others: 10_000, Bans: 200, Failed: 2, Median: 100, P99: 197, Longest: 198}); err != nil || *got != want {
		t.Errorf("newReaction = %+v, %v, want %+v", got, err, want)
	}
	if got, err := newReaction(nil, 200, 0); err == nil {
		t.Errorf("newReaction without a ban = %+v, want an error", got)
	}
}

func TestDatagram(t *testing.T) {
	const source = firstMeasured + 7
	frame := newDatagram(source)
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{})
	ip, _ := p.NetworkLayer().(*layers.IPv4)
	udp, _ := p.TransportLayer().(*layers.UDP)
	if p.ErrorLayer() != nil || ip == nil || udp == nil {
		t.Fatalf("%x is no UDP over IPv4: %v", frame, p)
	}
	if binary.BigEndian.Uint32(ip.SrcIP) != sourceAddr(source) || !ip.DstIP.Equal(targetAddr[:]) ||
		checksum(sum16(frame[ethernetLen:][:ipLen])) != 0 {
		t.Errorf("IP header %+v", ip)
	}
	if udp.DstPort != datagramPort || binary.BigEndian.Uint32(udp.Payload) != source || int(udp.Length) != 8+len(udp.Payload) {
		t.Errorf("UDP %+v with %x", udp, udp.Payload)
	}
}

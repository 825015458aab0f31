package detector

import "testing"

func TestClassifyTCP(t *testing.T) {
	tests := map[TCPFlags]Technique{
		SYN:                               TechniqueSYN,
		SYN | ECE | CWR:                   TechniqueSYN,
		FIN:                               TechniqueFIN,
		FIN | ECE:                         TechniqueFIN,
		0:                                 TechniqueNULL,
		ECE:                               TechniqueOddFlags, // PortSentry wants all eight bits clear
		CWR:                               TechniqueOddFlags,
		FIN | PSH | URG:                   TechniqueXMAS,
		FIN | PSH | URG | SYN:             TechniqueXMAS,
		FIN | PSH | URG | ECE | CWR:       TechniqueXMAS,
		SYN | FIN:                         TechniqueOddFlags,
		PSH:                               TechniqueOddFlags,
		URG:                               TechniqueOddFlags,
		SYN | PSH:                         TechniqueOddFlags,
		SYN | URG:                         TechniqueOddFlags,
		FIN | PSH:                         TechniqueOddFlags,
		FIN | URG:                         TechniqueOddFlags,
		SYN | FIN | PSH | URG | ECE | CWR: TechniqueXMAS,
	}
	for flags, want := range tests {
		if got := ClassifyTCP(flags); got != want {
			t.Errorf("ClassifyTCP(%08b) = %v, want %v", flags, got, want)
		}
	}
}

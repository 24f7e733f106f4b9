// The echo over UDP as one writes it in Go.
package main

import (
	"net"
	"os"
)

func main() {
	conn, err := net.ListenPacket("udp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		panic(err)
	}
	buffer := make([]byte, 1472)
	for {
		n, source, err := conn.ReadFrom(buffer)
		if err == nil {
			conn.WriteTo(buffer[:n], source)
		}
	}
}
